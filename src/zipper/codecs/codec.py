"""zipper-codec: a small EnCodec (arXiv 2210.13438), with a semantic first codebook or without."""

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from encodec import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from torch import Tensor, nn
from torch.backends import mkldnn

from zipper.codecs.hubert import HubertEncoder, hubert_file
from zipper.codecs.semantic import FITTED, HOP, SAMPLE_RATE, SemanticEncoder
from zipper.codecs.whisper import whisper_encoder
from zipper.config import TrainCodecConfig, read_json
from zipper.errors import ConfigError, DataError
from zipper.hashes import digest, sha256
from zipper.weight_files import load_state, save_state

WEIGHTS, SETTINGS = "codec.safetensors", "codec.json"
SEMANTIC = "semantic."  # prefix of its weights
REACH = 12  # frames before it that the sound of a zipper-codec's frame depends on, at most
ONEDNN = bool(mkldnn.enabled)
AVERAGE = ".embed_avg"  # of a codebook: its codes times how often they are used


class Codec:
    """Codec at one bit rate.

    sample_rate in Hz, hop in samples per frame, frame_rate in frames per second, codebooks Q, codes V per
    codebook. fingerprint: weights and number of codebooks, stored with the encoded dataset. coder: hash of
    the weights that first gave these codes; decoder: hash of the weights, if the decoder was trained further
    since. With a `semantic` encoder, the first codebook holds its units, and the others quantise what the
    codes of the units leave of the latents. Decoding is the same: the sum of all codes. silent: first
    codebooks that decoding ignores.
    reach: frames before (None: all) and after a frame that its sound depends on; (None, 0) holds for a causal
    decoder with memory (EnCodec's LSTM, Mimi's transformer). reflected: frames at the start that padding
    reflects, so that the first ones depend on all of them; 0: no more than `reach` says. folder: with
    codec.json, from which it was loaded.
    """

    semantic: SemanticEncoder | None = None
    decoder = ""
    folder: Path | None = None
    silent = 0
    reach: tuple[int | None, int] = (None, 0)
    reflected = 8

    def __init__(
        self,
        model: EncodecModel,
        codebooks: int,
        gain: float,
        name: str,
        semantic: SemanticEncoder | None = None,
        coder: str | None = None,
    ) -> None:
        self.model, self.semantic = model.eval().requires_grad_(False), semantic
        self.codebooks, self.gain, self.name = codebooks, gain, name
        self.sample_rate: int = model.sample_rate
        self.hop = int(math.prod(model.encoder.ratios))
        # Samples of silence after the longest waveform: more than half a receptive field. A causal model
        # needs it too, since its padding on the left reflects the first frames, or the silence after too few.
        self.margin = 6 * self.hop
        self.frame_rate = self.sample_rate / self.hop
        self.codes: int = model.quantizer.bins
        self.coder = coder or digest(model)
        self.fingerprint = f"{name} x{codebooks} {self.coder}"
        if semantic is not None:
            self.fingerprint += f", {semantic.fingerprint}"

    @property
    def description(self) -> str:
        """The fingerprint, and the hash of a decoder that was trained further: what sound depends on."""
        return f"{self.fingerprint}, decoder {self.decoder}" if self.decoder else self.fingerprint

    @property
    def kbps(self) -> float:
        """Bit rate in kbps."""
        return self.bit_rate(self.codebooks) / 1000

    def bit_rate(self, codebooks: int) -> float:
        """Bits per second of the first so many codebooks."""
        return self.frame_rate * codebooks * math.log2(self.codes)

    @torch.no_grad()
    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """Encode waveforms float32 [n] at `sample_rate` -> codes int64 [Q, F] each, F = ceil(n / hop).

        Batch padding is separated from each waveform by more than a receptive field of silence, so that its
        codes do not depend on the other waveforms. Raises DataError on an empty waveform.
        """
        frames = self.frames(waves)
        if self.codebooks == 1 and self.semantic is not None:
            semantic = self.semantic.to(self.device)
            return [semantic(wave.to(self.device))[None].cpu() for wave in waves]
        length = max(frames) * self.hop + self.margin
        batch = torch.stack([F.pad(wave, (0, length - len(wave))) for wave in waves])[:, None]  # [B, 1, n]
        residual = self.model.encoder(batch.to(self.device) * self.gain)  # [B, D, F]
        codes = residual.new_zeros(self.codebooks, len(waves), residual.shape[2], dtype=torch.int64)
        for level, book in enumerate(self.model.quantizer.vq.layers[: self.codebooks]):
            if level == 0 and self.semantic is not None:
                semantic = self.semantic.to(self.device)
                for row, wave in enumerate(waves):
                    codes[0, row, : frames[row]] = semantic(wave.to(self.device))
            else:
                codes[level] = book.encode(residual)
            residual = residual - book.decode(codes[level])
        return [codes[:, row, :count].cpu() for row, count in enumerate(frames)]

    def frames(self, waves: list[Tensor]) -> list[int]:
        """Frames of each waveform, rounded up. Raises DataError on an empty waveform."""
        frames = [math.ceil(len(wave) / self.hop) for wave in waves]
        if 0 in frames:
            raise DataError(f"Waveform {frames.index(0)} of the batch is empty.")
        return frames

    @torch.no_grad()
    def decode(self, codes: Tensor, samples: int | None = None) -> Tensor:
        """Decode codes int64 [Q, F], `silent` < Q <= `codebooks` -> float32 [n], n = samples or F * hop.

        Raises DataError on a code out of range.
        """
        if codes.numel() == 0:
            return torch.zeros(0)
        if codes.min() < 0 or codes.max() >= self.codes:
            raise DataError(
                f"Code {int(codes.max())} or {int(codes.min())} lies outside 0 to {self.codes - 1}."
            )
        return self.waves(codes)[: samples or codes.shape[1] * self.hop].cpu()

    def waves(self, codes: Tensor) -> Tensor:
        """As `decode`, but uncut and on the model's device."""
        latents = self.model.quantizer.vq.decode(codes[:, None].to(self.device))
        with _without_onednn():
            return self.model.decoder(latents)[0, 0] / self.gain

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


_switch, _decoding = threading.Lock(), 0  # threads in `_without_onednn`


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN compiles a transposed convolution for each new length, which takes longer than computing it.

    The switch is of the whole process, so it is off until the last thread has decoded: oneDNN rounds in
    another way."""
    global _decoding
    with _switch:
        _decoding += 1
        mkldnn.set_flags(False, _fp32_precision=None)
    try:
        yield
    finally:
        with _switch:
            _decoding -= 1
            if not _decoding:
                mkldnn.set_flags(ONEDNN, _fp32_precision=None)


class SemanticUnits(Codec):
    """Codec of one codebook, of semantic units, which is all that recognition needs. It cannot decode."""

    semantic: SemanticEncoder

    def __init__(self, semantic: SemanticEncoder) -> None:
        self.semantic = semantic
        self.codebooks, self.name = 1, "units"
        self.sample_rate, self.hop, self.margin = SAMPLE_RATE, HOP, 0
        self.frame_rate = SAMPLE_RATE / HOP
        self.codes = len(semantic.get_buffer("centroids"))
        self.fingerprint = f"units, {semantic.fingerprint}"

    @property
    def network(self) -> nn.Module:
        return self.semantic

    def waves(self, codes: Tensor) -> Tensor:
        raise ConfigError(
            "The codec of this model has semantic units alone, of which no sound can be made. Train one with "
            "sound: train_codec.codebooks=4."
        )


def load_zipper_codec(folder: Path, codebooks: int | None = None) -> Codec:
    """Load the codec that `zipper train-codec` wrote: safetensors, and JSON with shape and hash.
    codebooks: the first so many; default all."""
    if not (folder / WEIGHTS).is_file() or not (folder / SETTINGS).is_file():
        raise DataError(
            f"{folder} is no codec: it holds no {WEIGHTS} and {SETTINGS}. Run `make train-codec`."
        )
    settings = read_json(folder / SETTINGS, needed=("sha256", "shape", "gain"))
    if sha256(folder / WEIGHTS) != settings["sha256"]:
        raise DataError(
            f"{folder / WEIGHTS} is not the file that {SETTINGS} describes (its hash differs). Restore both."
        )
    if newer := {*settings["shape"]} - {f.name for f in fields(TrainCodecConfig)}:
        raise DataError(
            f"{folder / SETTINGS}: shape.{min(newer)} is unknown: another version wrote it. Update zipper."
        )
    cfg = TrainCodecConfig(**settings["shape"])
    if codebooks is not None and not 1 <= codebooks <= cfg.codebooks:
        raise ConfigError(
            f"codec.codebooks={codebooks}: {folder} has {cfg.codebooks}. Give 1 to {cfg.codebooks}."
        )
    units = build_semantic(cfg)
    if isinstance(units, HubertEncoder) and units.teacher != settings["semantic"]:
        raise DataError(
            f"{hubert_file()} holds other weights ({units.teacher}) than those that {folder} was trained "
            f"with ({settings['semantic']}). Delete the file, so that it is downloaded again, or train the "
            "codec anew."
        )
    weights = _with_averages(load_state(folder / WEIGHTS))
    if units is not None:
        fitted = {name: units.get_buffer(name) for name in FITTED}  # older folders hold centroids alone
        state = {key.removeprefix(SEMANTIC): w for key, w in weights.items() if key.startswith(SEMANTIC)}
        units.load_state_dict(units.state_dict() | fitted | state)
    if units is not None and cfg.units_only:
        codec: Codec = SemanticUnits(units)
        codec.folder = folder
        return codec
    model = build_zipper_codec(cfg)
    model.load_state_dict({key: w for key, w in weights.items() if not key.startswith(SEMANTIC)})
    codec = Codec(
        model, codebooks or cfg.codebooks, settings["gain"], "embedded", units, settings.get("coder")
    )
    codec.folder, codec.decoder = folder, digest(model) if cfg.decoder_only else ""
    codec.reach, codec.reflected = (REACH, 0 if cfg.causal else REACH // 2), 0
    return codec


def save_codec_weights(
    folder: Path, model: EncodecModel | None, semantic: SemanticEncoder | None, bits: int
) -> None:
    """Write a zipper-codec's weights in half precision: its own filters in 8 bits if `bits` is less than 16,
    the head of its semantic encoder always; codes and centroids never. model: None for units alone."""
    own = model.state_dict() if model else {}
    state = {name: w for name, w in own.items() if not name.endswith(AVERAGE)}
    small = [name for name in state if not name.startswith("quantizer.")] if bits < 16 else []
    if semantic is not None:
        state |= {f"{SEMANTIC}{name}": weight for name, weight in semantic.fitted().items()}
        small += [name for name in state if name.startswith(f"{SEMANTIC}head.")]
    save_state(folder / WEIGHTS, state, small)


def _with_averages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A zipper-codec's state with the sums of its codes, which training goes on from."""
    averages = {}
    for name in state:
        if name.endswith(".embed") and (average := name.removesuffix(".embed") + AVERAGE) not in state:
            averages[average] = state[name] * state[f"{name.removesuffix('embed')}cluster_size"][:, None]
    return state | averages


def build_semantic(cfg: TrainCodecConfig) -> SemanticEncoder | None:
    """Semantic encoder of a codec's shape, without what is fitted; None if it has none."""
    if cfg.semantic == "whisper":
        return whisper_encoder(cfg.layers, cfg.codes, cfg.semantic_ctc > 0)
    if cfg.semantic == "hubert":
        return HubertEncoder(cfg.layers, cfg.codes, cfg.semantic_ctc > 0).eval()
    return None


def build_zipper_codec(cfg: TrainCodecConfig) -> EncodecModel:
    """Small EnCodec from the package's classes: no LSTM, large strides next to the waveform."""
    shape = {"dimension": cfg.dimension, "n_filters": cfg.filters, "ratios": cfg.ratios, "lstm": 0}
    # Reflected, the first frames would depend on later ones.
    shape |= {"true_skip": True, "causal": cfg.causal, "pad_mode": "constant" if cfg.causal else "reflect"}
    quantizer = ResidualVectorQuantizer(dimension=cfg.dimension, n_q=cfg.codebooks, bins=cfg.codes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package still uses the old weight_norm
        encoder, decoder = SEANetEncoder(**shape), SEANetDecoder(**shape)
    kbps = cfg.sample_rate / math.prod(cfg.ratios) * math.log2(cfg.codes) * cfg.codebooks / 1000
    return EncodecModel(encoder, decoder, quantizer, [kbps], cfg.sample_rate, 1, name="embedded")
