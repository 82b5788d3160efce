"""Mimi as a codec: a small random one of transformers' own classes, behind the interface of EnCodec."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

from conftest import units
from zipper.codecs.load import load_codec
from zipper.config import CodecConfig
from zipper.data.dataset import open_dataset
from zipper.data.encode import prepare_dataset
from zipper.errors import ConfigError, DataError

SMALL = {
    "num_filters": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "upsample_groups": 16,
    "num_key_value_heads": 2, "head_dim": 8, "codebook_size": 32, "codebook_dim": 8, "num_quantizers": 4,
    "vector_quantization_hidden_dimension": 8,
}  # fmt: skip
EACH = 12.5 * 5 / 1000  # kbps of a codebook of 32 codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimi")
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**SMALL))
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            torch.nn.init.normal_(buffer)
    model.save_pretrained(folder)
    return folder


def mimi(folder, books: int = 3):
    return load_codec(CodecConfig(name="mimi", weights=str(folder), bandwidth_kbps=books * EACH))


def test_frames_codes_and_samples_are_exact(folder):
    codec = mimi(folder)
    assert (codec.sample_rate, codec.hop, codec.frame_rate, codec.codes) == (24000, 1920, 12.5, 32)
    assert codec.kbps == pytest.approx(3 * EACH)
    wave = torch.randn(10_001) * 0.1
    (codes,) = codec.encode([wave])
    assert codes.shape == (3, 6)
    assert codec.decode(codes).shape == (6 * 1920,)
    assert codec.decode(codes, samples=10_001).shape == (10_001,)
    assert codec.decode(codes[:1]).shape == (6 * 1920,)
    with pytest.raises(DataError, match="outside 0 to 31"):
        codec.decode(codes + 32)
    with pytest.raises(DataError, match="empty"):
        codec.encode([torch.zeros(0)])


def test_codes_do_not_depend_on_the_batch_and_fewer_codebooks_are_the_first_of_more(folder):
    waves = [torch.randn(n) * 0.1 for n in (3000, 12_800, 7001, 1920)]
    together = mimi(folder).encode(waves)
    for wave, codes in zip(waves, together, strict=True):
        assert torch.equal(mimi(folder).encode([wave])[0], codes)
        assert torch.equal(mimi(folder, 1).encode([wave])[0], codes[:1])
    assert len({tuple(codes[0].tolist()) for codes in together}) == 4


def test_a_store_is_made_of_it_and_names_it(folder, utterances, subwords, tmp_path):
    dataset = prepare_dataset(tmp_path, utterances, units(mimi(folder), subwords), 30.0)
    assert dataset.info["fingerprint"]["codec"].startswith("mimi x3 ")
    with pytest.raises(DataError, match="made with another codec"):
        open_dataset(dataset.folder, dataset.modalities, {"codec": mimi(folder, 2).fingerprint})


def test_what_it_cannot_be_is_said(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"kbps=1\.5: Mimi has 0\.0625 kbps per codebook\. Give 1 to 4"):
        load_codec(CodecConfig(name="mimi", weights=str(folder), bandwidth_kbps=1.5))
    with pytest.raises(ConfigError, match=r"1\.1 for 8"):
        CodecConfig(name="mimi")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no Mimi"):
        load_codec(CodecConfig(name="mimi", weights=str(tmp_path / "none"), bandwidth_kbps=EACH))
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.layers.0.conv.weight"]
    (tmp_path / "config.json").write_text(
        (folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"its weights are not those .*layers\.0\.conv\.weight"):
        load_codec(CodecConfig(name="mimi", weights=str(tmp_path), bandwidth_kbps=EACH))
