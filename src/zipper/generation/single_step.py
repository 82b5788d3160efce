"""One timestep of a tower with its zips, in as few operators as possible.

At the size of these towers the overhead of operator calls dominates. Gates are therefore plain numbers, masks
are additive biases, and constant tensors are computed once. The result equals that of the tower and its zips
(tests/zipper/generation/test_step.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.models.lora import merged
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import KeyValue, Layer, LayerCache, frequencies
from zipper.models.zip_block import SECONDS_BASE, SECONDS_PER_RADIAN, ZipBlock

# Position of a zip's query: a rotation, or None.
QueryPosition = tuple[Tensor, Tensor] | None


class CrossAttentionBias(NamedTuple):
    """Additive attention bias of one source tower at one timestep."""

    bias: Tensor  # [B, 1, 1, timesteps], added to the scores
    has_source: Tensor | None  # bool [B, 1], rows with a source token; None: all

    @classmethod
    def of(cls, mask: Tensor, dtype: torch.dtype) -> "CrossAttentionBias":
        """From a mask bool [B, timesteps], True = attend."""
        has_source = mask.any(dim=1, keepdim=True)
        return cls(as_bias(mask, dtype), None if bool(has_source.all()) else has_source)

    def select(self, rows: Tensor) -> "CrossAttentionBias":
        """The rows int64 [N]."""
        return CrossAttentionBias(self.bias[rows], None if self.has_source is None else self.has_source[rows])


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask bool [B, timesteps], True = attend, to an additive bias [B, 1, 1, timesteps].

    A bias makes attention 4 us faster than a mask. It is finite: a row with nothing to attend to gets a mean
    instead of NaN, which `CrossAttentionBias.has_source` then discards.
    """
    low = torch.finfo(dtype).min / 2
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, low)[:, None, None]


class SingleStep:
    """Single-timestep version of tower `name` and of the zips that it queries. The model must not change
    afterwards."""

    def __init__(self, model: MultimodalModel, name: str) -> None:
        assert not model.training, "SingleStep has no dropout"
        tower = model.tower(name)
        self.model, self.name = model, name
        self.offset, self.table = tower.offset, tower.embedding.weight
        self.layers = [_Layer.of(layer) for layer in tower.layers]
        self.zips = {
            (stage, other): _Zip.of(model.zip(stage, name, other))
            for stage in range(model.stages)
            for query, other in model.directions_used
            if query == name
        }
        self.finish = _norm(tower.norm)
        self.head = _transposed(tower.weight)
        self.rotary = _Rotary(tower.cfg.size, tower.cfg.rope_base, self.table, tower.cfg.rope_scaling)
        size = tower.cfg.width // model.cfg.zip.heads
        self.zip_rotary = _Rotary(size, SECONDS_BASE, self.table)
        self.position_kind = model.cfg.zip.position

    def embed(self, tokens: Tensor, multimodal: Tensor) -> Tensor:
        """tokens int64 [B, Q] -> [B, D], with the input projection."""
        x = F.embedding_bag(tokens + self.offset, self.table, mode="sum")
        return self.model.project(self.name, x[:, None], multimodal)[:, 0]

    def logits(self, states: Tensor) -> Tensor:
        """states [B, D] -> [B, Q, V]"""
        return torch.mm(states, self.head).view(len(states), len(self.offset), -1)

    def query_position(self, next_time: Tensor) -> QueryPosition:
        """Position of the zips' queries. next_time [B, 1]: time of the query in seconds."""
        return self.zip_rotary(next_time / SECONDS_PER_RADIAN) if self.position_kind == "rotary" else None


class _Rotary:
    """Rotary embedding of one timestep, as x cos + swap_halves(x) sin."""

    def __init__(self, size: int, base: float, like: Tensor, scaling: Sequence[float] = ()) -> None:
        frequency = frequencies(size, base, like.device, like.dtype, scaling)
        # cos is even; sin of the first half needs the opposite sign.
        self.frequency = torch.cat([-frequency, frequency])

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """position [B, 1], real -> cosines and sines [B, 1, K]."""
        angle = position[..., None] * self.frequency
        return angle.cos(), angle.sin()


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, H, K]."""
    cos, sin = rotation
    wide = x.to(cos.dtype)
    a, b = wide.chunk(2, dim=-1)
    return torch.addcmul(wide * cos, torch.cat([b, a], dim=-1), sin).to(x.dtype)


class _Layer(NamedTuple):
    heads: int
    kv_heads: int
    size: int
    attention_norm: Callable[[Tensor], Tensor]
    to_qkv: Tensor
    bias: Tensor | None  # of to_qkv
    qk_norm: tuple[nn.RMSNorm, nn.RMSNorm] | None
    to_out: Tensor
    feed_forward_norm: Callable[[Tensor], Tensor]
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> "_Layer":
        assert isinstance(layer, Layer)
        attention, feed_forward = layer.attention, layer.feed_forward
        query_norm, key_norm = attention.query_norm, attention.key_norm
        return cls(
            attention.heads, attention.kv_heads, attention.size,
            _norm(layer.attention_norm), _transposed(merged(attention.to_qkv)), attention.to_qkv.bias,
            None if query_norm is None or key_norm is None else (query_norm, key_norm),
            _transposed(merged(attention.to_out)),
            _norm(layer.feed_forward_norm),
            _transposed(merged(feed_forward.gate_up)), _transposed(merged(feed_forward.down)),
        )  # fmt: skip

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor, own: LayerCache) -> Tensor:
        heads, rotated = self.heads, self.heads + self.kv_heads
        qkv = torch.mm(self.attention_norm(x), self.to_qkv)
        if self.bias is not None:
            qkv = qkv + self.bias
        qkv = qkv.view(len(x), -1, self.size)
        qk = qkv[:, :rotated]
        if self.qk_norm is not None:
            query_norm, key_norm = self.qk_norm
            qk = torch.cat([query_norm(qk[:, :heads]), key_norm(qk[:, heads:])], dim=1)
        qk = _rotated(qk, rotation)
        keys = own.update(KeyValue(qk[:, heads:, None], qkv[:, rotated:, None]))
        y = F.scaled_dot_product_attention(
            qk[:, :heads, None], *keys, attn_mask=bias, enable_gqa=self.kv_heads != heads
        )
        x = torch.addmm(x, y.flatten(1), self.to_out)
        gate, up = torch.mm(self.feed_forward_norm(x), self.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate) * up, self.down)


class _Zip(NamedTuple):
    heads: int
    size: int
    query_norm: Callable[[Tensor], Tensor]
    to_q: nn.Linear
    to_out: Tensor
    attention_gate: float  # tanh(a)
    feed_forward_norm: Callable[[Tensor], Tensor]
    widen: Tensor
    narrow: Tensor
    feed_forward_gate: float  # tanh(b)

    @classmethod
    def of(cls, block: ZipBlock) -> "_Zip":
        widen, _, narrow = block.feed_forward
        assert isinstance(widen, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        return cls(
            block.heads, block.size,
            _norm(block.query_norm), block.to_q, _transposed(block.to_out.weight),
            block.attention_gate.tanh().item(),
            _norm(block.feed_forward_norm), _transposed(widen.weight), _transposed(narrow.weight),
            block.feed_forward_gate.tanh().item(),
        )  # fmt: skip

    def __call__(
        self, x: Tensor, position: QueryPosition, source: KeyValue, cross_bias: CrossAttentionBias
    ) -> Tensor:
        """x [B, D] plus the output of the zip. position: of the query."""
        q = self.to_q(self.query_norm(x)).view(len(x), self.heads, self.size)
        if position is not None:
            q = _rotated(q, position)
        y = F.scaled_dot_product_attention(q[:, :, None], *source, attn_mask=cross_bias.bias)
        y = torch.addmm(x, y.flatten(1), self.to_out, alpha=self.attention_gate)
        wide = F.gelu(torch.mm(self.feed_forward_norm(y), self.widen))
        y = torch.addmm(y, wide, self.narrow, alpha=self.feed_forward_gate)
        return y if cross_bias.has_source is None else torch.where(cross_bias.has_source, y, x)


def _transposed(weight: Tensor) -> Tensor:
    """Weight [out, in] as [in, out], for x @ weight.

    On a CPU a wide matrix is read three times faster in this layout, so it is copied.
    """
    weight = weight.t()
    wide = weight.shape[0] < weight.shape[1]
    return weight.contiguous() if wide and weight.device.type == "cpu" else weight


def _norm(norm: nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    """RMSNorm of [B, D]. On a CPU PyTorch's own takes seven operators, this version four."""
    weight = norm.weight
    if weight.device.type != "cpu" or weight.dtype.itemsize < 4:
        return norm
    width, eps = len(weight), torch.finfo(weight.dtype).eps if norm.eps is None else norm.eps
    scaled, floor = weight * width**0.5, weight.new_tensor([(width * eps) ** 0.5])

    def fast_norm(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, floor) * scaled

    return fast_norm
