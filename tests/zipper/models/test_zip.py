"""One zip, against a slow loop, and what it must leave alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.config import ZipConfig
from zipper.models.tower import rotate, rotation
from zipper.models.zip_block import (
    SECONDS_BASE,
    SECONDS_PER_RADIAN,
    TimePositions,
    ZipBlock,
    cross_attention_mask,
    is_gate,
)


def make(position: str, gate: float = 0.8) -> tuple[ZipBlock, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Block, asking states, asked states, their times, mask with blind rows and padding."""
    torch.manual_seed(1)
    block = ZipBlock(ZipConfig(heads=2, gate_init=gate, position=position), query=8, source=12).double()
    for parameter in block.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        block.feed_forward_gate.fill_(-0.6)
    x, source = torch.randn(2, 5, 8).double(), torch.randn(2, 6, 12).double()
    place_q = torch.tensor([[0, 1, 5, 6, 11], [3, 4, 5, 8, 9]])
    place_k = torch.tensor([[2, 3, 4, 7, 8, 9], [0, 1, 2, 6, 7, 0]])
    valid_k = torch.tensor([[True] * 6, [True] * 5 + [False]])
    time_q, time_k = torch.arange(5)[None].double() / 4, torch.arange(6)[None].double() / 25
    return block, x, source, time_q, time_k, cross_attention_mask(place_q, place_k, valid_k)


def slow(block: ZipBlock, x: Tensor, source: Tensor, time_q: Tensor, time_k: Tensor, mask: Tensor) -> Tensor:
    """Paper 3.1 and Flamingo's block, one token and one head at a time, with no mask and no batching."""
    kind, size = block.cfg.position, block.size
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        h = F.relu(block.projection(block.source_norm(source[b])))
        keys, values = block.to_k(h), block.to_v(h)
        for t in range(x.shape[1]):
            seen = mask[b, t].nonzero().flatten()
            if len(seen) == 0:
                continue
            query = block.to_q(block.query_norm(x[b, t]))
            heads = []
            for head in range(block.heads):
                cut = slice(head * size, (head + 1) * size)
                q, k = query[cut], keys[seen][:, cut]
                if kind == "rotary":
                    turn_q = rotation(time_q[:, t : t + 1] / SECONDS_PER_RADIAN, size, SECONDS_BASE, x.dtype)
                    turn_k = rotation(time_k[:, seen] / SECONDS_PER_RADIAN, size, SECONDS_BASE, x.dtype)
                    q, k = rotate(q[None, None, None], turn_q)[0, 0, 0], rotate(k[None, None], turn_k)[0, 0]
                weights = torch.softmax(k @ q / math.sqrt(size), dim=0)
                heads.append(weights @ values[seen][:, cut])
            y = x[b, t] + torch.tanh(block.attention_gate) * block.to_out(torch.cat(heads))
            y = y + torch.tanh(block.feed_forward_gate) * block.feed_forward(block.feed_forward_norm(y))
            out[b, t] = y - x[b, t]
    return out


@pytest.mark.parametrize("position", ["none", "rotary"])
def test_zip_equals_a_slow_loop(position):
    block, x, source, time_q, time_k, mask = make(position)
    fast = block(x, TimePositions(time_q), block.project_source(source, TimePositions(time_k)), mask)
    torch.testing.assert_close(fast, slow(block, x, source, time_q, time_k, mask), rtol=1e-9, atol=1e-12)
    assert fast.abs().max() > 0.1


def test_a_token_with_nothing_before_it_is_untouched_bit_for_bit():
    block, x, source, time_q, time_k, mask = make("rotary")
    blind = ~mask.any(-1)
    assert 0 < blind.sum() < blind.numel()
    out = x + block(x, TimePositions(time_q), block.project_source(source, TimePositions(time_k)), mask)
    assert torch.equal(out[blind], x[blind])
    assert (out[~blind] != x[~blind]).any(-1).all()
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)


def test_attention_has_no_row_without_a_key(monkeypatch):
    """On a GPU such a row, which every padded batch has, gave NaN gradients after 50 steps."""
    block, x, source, time_q, time_k, mask = make("rotary")
    masks, attention = [], F.scaled_dot_product_attention

    def record(*inputs: Tensor, attn_mask: Tensor) -> Tensor:
        masks.append(attn_mask)
        return attention(*inputs, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    block(x, TimePositions(time_q), block.project_source(source, TimePositions(time_k)), mask)
    assert not mask.any(-1).all()
    assert masks[0].any(-1).all()


def test_closed_gates_change_nothing_and_still_learn():
    block, x, source, time_q, time_k, mask = make("rotary")
    with torch.no_grad():
        block.attention_gate.zero_()
        block.feed_forward_gate.zero_()
    out = block(x, TimePositions(time_q), block.project_source(source, TimePositions(time_k)), mask)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert block.attention_gate.grad.abs() > 0
    assert block.feed_forward_gate.grad.abs() > 0


@pytest.mark.parametrize("position", ["none", "rotary"])
def test_the_weights_that_are_drawn_are_those_that_attention_uses(position):
    block, x, source, time_q, time_k, mask = make(position)
    seen, when = block.project_source(source, TimePositions(time_k)), TimePositions(time_q)
    weights = block.weights(x, when, seen, mask)
    heads = (weights @ seen.value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.to_out(heads), block.attend(x, when, seen, mask), rtol=0, atol=1e-12)
    assert (weights.sum(-1)[:, 0] > 0.999).equal(mask.any(-1))


def test_what_is_asked_reaches_keys_and_values_at_its_own_scale():
    """PyTorch's own start leaves 7 % of it after three layers: zips then learnt nothing for 500 steps."""
    torch.manual_seed(0)
    block = ZipBlock(ZipConfig(heads=4, position="none"), query=128, source=96)
    states = torch.randn(4, 200, 96)
    h = F.relu(block.projection(block.source_norm(states)))
    value = block.project_source(states, torch.zeros(4, 200)).value
    for signal in (h, value):
        spread = (signal - signal.mean((0, 1) if signal is h else (0, 2), keepdim=True)).std()
        assert 0.4 < spread < 2


def test_both_parts_of_a_zip_have_a_gate_of_their_own():
    block, *_ = make("none", gate=0.8)
    gates = {name: float(one) for name, one in block.named_parameters() if is_gate(name)}
    assert gates == {"attention_gate": pytest.approx(0.8), "feed_forward_gate": -0.6}


@pytest.mark.parametrize("depth", [1, 3])
def test_g_gives_its_relu_a_signal_of_one_scale_whatever_its_depth(depth):
    torch.manual_seed(0)
    block = ZipBlock(ZipConfig(heads=4, projection_depth=depth), query=128, source=96)
    found = block.projected(7 * torch.randn(4, 200, 96))
    assert float(found.square().mean().sqrt()) == pytest.approx(2**0.5, rel=0.15)  # of which ReLU leaves 1


def test_a_new_zip_attends_most_to_what_was_said_at_the_same_time():
    torch.manual_seed(0)
    block = ZipBlock(ZipConfig(heads=4), query=128, source=96)
    times, everything = TimePositions(torch.arange(20)[None] / 5), torch.ones(8, 20, 20, dtype=torch.bool)
    source = block.project_source(torch.randn(8, 20, 96), times)
    weights = block.weights(torch.randn(8, 20, 128), times, source, everything).mean((0, 1))
    assert torch.equal(weights.argmax(-1), torch.arange(20))
