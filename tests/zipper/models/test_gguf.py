"""Language models in GGUF files."""

from pathlib import Path

import numpy as np
import pytest

from zipper.errors import DataError
from zipper.models.gguf import _check_rope, _check_weights


@pytest.mark.parametrize("kind", ["plain", "none", "linear", "factors"])
def test_scaled_positions_that_transformers_does_not_read_are_refused(tmp_path, kind):
    """Llama 3.x keeps the factors of its rotary positions in a tensor of their own."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    if kind in ("none", "linear"):
        writer.add_string("llama.rope.scaling.type", kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    if kind == "factors":
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    _check_rope(file, {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}})  # it was read
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    if kind in ("plain", "none"):
        _check_rope(file, config)
        return
    with pytest.raises(DataError, match=r"rotary positions \((rope_freqs|llama\.rope)"):
        _check_rope(file, config)


@pytest.mark.parametrize(
    ("report", "tied", "lacking"),
    [
        ({"missing_keys": {"model.norm.weight", "lm_head.weight"}}, True, "model.norm.weight .*nor 0 more"),
        ({"missing_keys": {"lm_head.weight"}}, False, "lm_head.weight"),
        ({"missing_keys": set(), "mismatched_keys": [("a", (1,), (2,))]}, True, "'a'"),
        ({"missing_keys": {"lm_head.weight"}}, True, None),
    ],
)
def test_a_file_that_lacks_weights_is_refused(report, tied, lacking):
    """transformers makes them up: a part of a file that is split would be another model."""
    if lacking is None:
        _check_weights(Path("a.gguf"), {"mismatched_keys": [], **report}, tied)
        return
    with pytest.raises(DataError, match=f"a.gguf does not hold .*{lacking}"):
        _check_weights(Path("a.gguf"), {"mismatched_keys": [], **report}, tied)
