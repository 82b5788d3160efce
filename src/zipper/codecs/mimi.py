"""Mimi (arXiv 2410.00037) with the interface of `Codec`: 24 kHz, 12.5 frames per second, codebooks of
2,048 codes. The first codebook is semantic, like the paper's units."""

import math
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zipper.codecs.codec import Codec
from zipper.errors import ConfigError, DataError
from zipper.hashes import digest


class Mimi(Codec):
    """MimiModel of transformers at one number of codebooks."""

    def __init__(self, folder: Path, kbps: float) -> None:
        """folder: config.json and model.safetensors. Raises ConfigError on an unsupported bit rate or without
        transformers, DataError on a folder without the model."""
        if find_spec("transformers") is None:
            raise ConfigError(
                "codec.name=mimi needs transformers: run `make setup-pretrained`, or pip install -e "
                "'.[pretrained]'."
            )
        from transformers import MimiModel

        try:
            model, found = MimiModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise DataError(
                f"codec.weights={folder} holds no Mimi (config.json, model.safetensors): {why}"
            ) from error
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        if wrong := sorted((key for kind in kinds for key in found[kind]), key=str):
            raise DataError(
                f"{folder}: its weights are not those of its config.json, {wrong[0]} first. Fetch it again."
            )
        self.model = model.eval().requires_grad_(False)
        settings = model.config
        self.sample_rate, self.codes = settings.sampling_rate, settings.codebook_size
        self.hop = round(settings.sampling_rate / settings.frame_rate)
        self.frame_rate = self.sample_rate / self.hop
        each = self.frame_rate * math.log2(self.codes) / 1000
        self.codebooks = round(kbps / each)
        if not 1 <= self.codebooks <= settings.num_quantizers or abs(self.codebooks * each - kbps) > 1e-3:
            raise ConfigError(
                f"codec.bandwidth_kbps={kbps}: Mimi has {each:g} kbps per codebook. Give 1 to "
                f"{settings.num_quantizers} times that: {each:g}, {2 * each:g}, ... ({8 * each:g} for 8 "
                "codebooks)."
            )
        self.name = "mimi"
        self.fingerprint = f"mimi x{self.codebooks} {digest(self.model)}"

    @torch.no_grad()
    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """See Codec. The model is causal: padding on the right changes no code."""
        frames = self.frames(waves)
        length = max(frames) * self.hop
        batch = torch.stack([F.pad(wave, (0, length - len(wave))) for wave in waves])[:, None]  # [B, 1, n]
        found = self.model.encode(batch.to(self.device), num_quantizers=self.codebooks)
        codes = found.audio_codes  # [B, Q, F]
        return [codes[row, :, :count].cpu() for row, count in enumerate(frames)]

    def waves(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None].to(self.device)).audio_values[0, 0]
