"""Language models in GGUF files."""

import numpy as np
import pytest

from zipper.errors import DataError
from zipper.models.gguf import _check_rope


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
