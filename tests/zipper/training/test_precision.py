"""bf16-products: as float32 up to the rounding of the inputs of products, and only within its context."""

import copy

import pytest
import torch
from torch import nn

from conftest import config
from zipper.codecs import semantic
from zipper.config import TrainConfig
from zipper.distributed import check_trainer
from zipper.errors import ConfigError
from zipper.training import precision
from zipper.training import run as run_module
from zipper.training.precision import BFloat16Products


@pytest.mark.parametrize("instructions", [True, False])
def test_a_product_is_that_of_the_rounded_inputs_forward_and_backward(instructions, monkeypatch):
    monkeypatch.setattr(precision, "MULTIPLIES_BFLOAT16", instructions)
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48), torch.randn(5, 7, 64, requires_grad=True)
    gradient = torch.randn(5, 7, 48)
    slow = copy.deepcopy(linear)
    with BFloat16Products().forward_context():
        y = linear(x)
    assert y.dtype == torch.float32
    y.backward(gradient)
    for rounded in (x.grad, linear.weight.grad):
        assert torch.equal(rounded, rounded.bfloat16().float())
    rounded = x.detach().bfloat16().double()
    weight = slow.weight.detach().bfloat16().double()
    expected = rounded @ weight.T + slow.bias.detach()
    # One rounding of the result to bfloat16, 2^-9.
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-2)
    g = gradient.bfloat16().double()
    torch.testing.assert_close(x.grad.double(), g @ weight, rtol=2**-8, atol=1e-2)
    torch.testing.assert_close(
        linear.weight.grad.double(), g.flatten(0, 1).T @ rounded.flatten(0, 1), rtol=2**-8, atol=2e-2
    )
    assert torch.equal(linear.bias.grad, gradient.sum((0, 1)))
    assert torch.equal(linear(x), slow(x))  # float32 outside


def test_frozen_weights_and_inputs_without_gradient_get_none():
    linear, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(3, 8, requires_grad=True)
    with BFloat16Products().forward_context():
        linear(x).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is None


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm_is_that_of_torch_with_its_gradients(eps):
    torch.manual_seed(0)
    norm, x = nn.RMSNorm(48, eps=eps), torch.randn(5, 7, 48, requires_grad=True)
    nn.init.normal_(norm.weight)
    gradient = torch.randn(5, 7, 48)
    expected = norm(x)
    with BFloat16Products().forward_context():
        y = norm(x)
    assert torch.equal(y, expected)
    parts = (x, norm.weight)
    for a, b in zip(*(torch.autograd.grad(out, parts, gradient) for out in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_keeps_the_mean_and_passes_gradients_through_its_mask(p):
    torch.manual_seed(0)
    dropout, x = nn.Dropout(p), torch.ones(1001, 999, requires_grad=True)
    with BFloat16Products().forward_context():
        y = dropout(x)
        assert torch.equal(dropout.eval()(x), x)
    share = round(256 * p) / 256
    assert abs(float((y == 0).float().mean()) - share) < 0.002
    assert abs(float(y.detach().mean()) - 1) < 0.003
    kept = (y != 0).float()  # columns and rows are alike, whatever byte of a number masks them
    assert float((kept.mean(0) - (1 - share)).abs().max()) < 0.08
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_a_training_differs_from_float32_by_rounding_alone():
    ends = []
    for name in ("32-true", "bf16-products"):
        words = [f"name={name}", f"train.precision={name}", "train.steps=20"]
        run_module.train(config(*words, "train.validate_every=20"), "x")
        kept = torch.load(f"build/runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        ends.append(
            torch.cat([weight.flatten() for name, weight in sorted(kept.items()) if "layers" in name])
        )
    exact, rough = ends
    assert not torch.equal(exact, rough)
    assert (rough - exact).norm() < 0.02 * exact.norm()


def test_it_is_refused_with_what_it_does_not_work_with():
    with pytest.raises(ConfigError, match=r"bf16-products with train\.compile=true.*bf16-mixed"):
        TrainConfig(precision="bf16-products", compile=True)
    check_trainer(TrainConfig(precision="bf16-products", accelerator="cpu"))


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_what_dropout_keeps_makes_up_for_what_it_drops(p):
    dropout = nn.Dropout(p)
    with BFloat16Products().forward_context():
        y = dropout(torch.ones(1000))
    assert float(y.max()) * (1 - round(256 * p) / 256) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("instructions", [True, False])
def test_the_letter_head_trains_in_bfloat16_where_the_cpu_multiplies_it(instructions, monkeypatch):
    monkeypatch.setattr(semantic, "MULTIPLIES_BFLOAT16", instructions)
    torch.manual_seed(0)
    body, x = semantic.Convolutions(dropout=0.0), torch.randn(2, 30, semantic.HEAD)
    valid = torch.ones(2, 30, dtype=torch.bool)
    exact, trained = body.eval()(x, valid), body.train()(x, valid)
    assert torch.equal(trained, exact) == (not instructions)
    torch.testing.assert_close(trained, exact, atol=0.1, rtol=0.1)
