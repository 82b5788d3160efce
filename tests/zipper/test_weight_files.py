"""Files of weights: what is written in few bits is read within half a step, and written again as it was."""

import pytest
import torch

from zipper.errors import DataError
from zipper.weight_files import GROUP, dequantise, load_state, quantise, rounded, save_state


def test_a_row_in_8_bits_is_within_half_a_step_and_is_not_rounded_twice():
    torch.manual_seed(0)
    weight = torch.randn(20, 6, 40) * torch.logspace(-3, 2, 20)[:, None, None]
    weight[3] = 0
    whole, scale = quantise(weight)
    assert (whole.dtype, scale.dtype) == (torch.int8, torch.float16)
    step = weight.flatten(1).abs().amax(1)[:, None, None] / 127
    near = dequantise(whole, scale)
    assert ((near - weight).abs() <= 0.51 * step).all()
    assert torch.equal(rounded(near), near)


def test_a_matrix_in_4_bits_is_near_in_every_group_and_is_not_rounded_twice():
    torch.manual_seed(0)
    weight = torch.randn(40, 5 * GROUP) * torch.logspace(-3, 2, 40)[:, None]
    weight[3] = 0
    weight[4, :GROUP] = torch.linspace(-8, 7, 16).repeat(2)  # what 4 bits hold exactly
    packed, scale = quantise(weight, 4)
    assert (packed.dtype, packed.shape) == (torch.uint8, (40, 5 * GROUP // 2))
    assert (scale.dtype, scale.shape) == (torch.float16, (40, 5))
    near = dequantise(packed, scale)
    groups, wrong = weight.unflatten(1, (5, GROUP)), (near - weight).unflatten(1, (5, GROUP))
    assert (
        wrong.square().mean(-1).sqrt() <= groups.abs().amax(-1) / 7 / 3
    ).all()  # a step / sqrt(12), nearly
    assert torch.equal(near[3], weight[3])
    assert torch.equal(near[4, :GROUP], weight[4, :GROUP])
    assert torch.equal(rounded(near, 4), near)
    assert quantise(torch.randn(4, GROUP + 1), 4)[0].dtype == torch.int8  # no whole groups
    assert quantise(torch.randn(4, GROUP, 3), 4)[0].dtype == torch.int8


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_state_is_read_as_it_was_written(tmp_path, bits):
    torch.manual_seed(0)
    state = {
        "large": torch.randn(64, 96),
        "small": torch.randn(3, 4),
        "gain": torch.randn(5000),
        "half": torch.randn(64, 96),
        "count": torch.tensor([70_000]),
    }
    save_state(tmp_path / "x", state, ("large", "small", "gain", "count"), bits)
    read = load_state(tmp_path / "x")
    assert {*read} == {*state}
    expected = {name: weight.half().float() for name, weight in state.items() if name != "count"}
    expected["count"] = state["count"]
    if bits < 16:
        expected["large"] = rounded(state["large"], bits)
    assert all(torch.equal(read[name], weight) for name, weight in expected.items())
    others = 2 * (64 * 96 + 3 * 4 + 5000)
    assert (tmp_path / "x").stat().st_size - others < 64 * 96 * bits / 8 + 1200


def test_a_weight_beyond_half_precision_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match=r"^big has weights up to 1e\+05.*to 65504"):
        save_state(tmp_path / "x", {"small": torch.ones(2), "big": torch.tensor([1.0, -1e5])})
    assert not (tmp_path / "x").exists()
    save_state(tmp_path / "x", {"big": torch.tensor([65504.0, torch.inf])})


def test_a_file_of_weights_may_be_read_by_whom_other_files_may(tmp_path):
    save_state(tmp_path / "weights.safetensors", {"gain": torch.ones(3)})
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_weights_that_half_precision_does_not_reach_are_refused_in_any_bits(tmp_path, bits):
    weight = torch.randn(128, 64)
    weight[3, 7] = 3e7
    with pytest.raises(DataError, match=r"big has weights up to 3e\+07"):
        save_state(tmp_path / "a", {"big": weight}, ["big"], bits)
    turned = torch.randn(64, 128).T  # not contiguous
    save_state(tmp_path / "a", {"turned": turned}, ["turned"], bits)
    assert torch.equal(load_state(tmp_path / "a")["turned"], rounded(turned.contiguous(), bits))
