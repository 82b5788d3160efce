"""Files of weights: what is written in 8 bits is read within half a step, and written again as it was."""

import torch

from zipper.weight_files import dequantise, load_state, quantise, rounded, save_state


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


def test_a_state_is_read_as_it_was_written_in_8_bits_or_in_half_precision(tmp_path):
    torch.manual_seed(0)
    state = {
        "large": torch.randn(64, 80),
        "small": torch.randn(3, 4),
        "gain": torch.randn(5000),
        "half": torch.randn(64, 80),
        "count": torch.tensor([70_000]),
    }
    sizes = []
    for int8 in ((), ("large", "small", "gain")):
        save_state(tmp_path / "x", state, int8)
        sizes.append((tmp_path / "x").stat().st_size)
        read = load_state(tmp_path / "x")
        assert {*read} == {*state}
        expected = {name: weight.half().float() for name, weight in state.items() if name != "count"}
        expected["count"] = state["count"]
        if int8:
            expected["large"] = rounded(state["large"])
        assert all(torch.equal(read[name], weight) for name, weight in expected.items())
    assert sizes[0] - sizes[1] > 64 * 80 - 500
