"""Speaker similarity: cosine of the speaker embeddings of two recordings (GE2E, arXiv 1710.10467).

The weights are those of the package resemblyzer (Apache 2.0), of which only the file is read. No codec and no
ASR scorer shares them.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from zipper.errors import DataError

PACKAGE, FILE = "resemblyzer", "pretrained.pt"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
RATE, MELS, WIDTH = 16_000, 40, 256
WINDOW, STEP = 160, 77  # frames of 10 ms
LEVEL = -30.0  # dB of full scale; quieter recordings are amplified


class SpeakerEncoder(nn.Module):
    """Mel spectrogram, three LSTM layers and a projection; the mean embedding of windows of 1.6 s."""

    name = "GE2E of resemblyzer 0.1.4"

    def __init__(self) -> None:
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            RATE,
            n_fft=400,
            hop_length=160,
            n_mels=MELS,
            norm="slaney",
            mel_scale="slaney",
            pad_mode="constant",
        )
        self.lstm = nn.LSTM(MELS, WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        """wave float32 [n] at RATE, not silent -> embedding [WIDTH] of length 1."""
        level = 10 * wave.square().mean().clamp(min=1e-10).log10()
        wave = wave * 10 ** ((LEVEL - level).clamp(min=0) / 20)
        frames = -(-len(wave) // 160)
        starts = [*range(0, max(1, frames - WINDOW + STEP + 1), STEP)]
        if len(starts) > 1 and frames - starts[-1] < 0.75 * WINDOW:
            starts.pop()
        mel = self.mel(F.pad(wave, (0, max(0, (starts[-1] + WINDOW) * 160 - len(wave))))).T
        _, (hidden, _) = self.lstm(torch.stack([mel[start : start + WINDOW] for start in starts]))
        return F.normalize(F.normalize(F.relu(self.linear(hidden[-1]))).mean(0), dim=0)


def speaker_encoder() -> SpeakerEncoder | None:
    """Encoder with the weights of resemblyzer; None if it is not installed (`make setup-speaker`).

    Raises DataError if its file is not the one whose hash is known.
    """
    spec = find_spec(PACKAGE)  # does not import it
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name(FILE)
    content = file.read_bytes() if file.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise DataError(
            f"{file} is missing or changed (SHA-256 {found[:12]}, not {SHA256[:12]}). Reinstall resemblyzer "
            "0.1.4, or uninstall it to go without speaker similarity."
        )
    encoder = SpeakerEncoder()
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    kept = {name: weight for name, weight in state.items() if name.startswith(("lstm.", "linear."))}
    encoder.load_state_dict(kept, strict=False)  # the mel filters are no weights of the file
    return encoder.eval()
