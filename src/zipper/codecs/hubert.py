"""Semantic units from HuBERT (arXiv 2106.07447): states of one layer of torchaudio's HUBERT_BASE.

Its weights (95 million) stay in the cache of torch.hub. A codec's folder holds the centroids and, in its
JSON, the hash of the weights.
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from zipper.codecs.semantic import SemanticEncoder
from zipper.errors import DataError
from zipper.hashes import digest

FILE = "hubert_fairseq_base_ls960.pth"
URL = f"https://download.pytorch.org/torchaudio/models/{FILE}"
PADDING = 40  # samples on each side, so that the convolutions give two states a unit


class HubertEncoder(SemanticEncoder):
    """HuBERT up to one of its layers, with weights from the cache of torch.hub; the mean of two states is a
    unit's. The model is no part of the module's state."""

    def __init__(self, layer: int, units: int, letters: bool = False) -> None:
        """See `load_hubert` for errors."""
        model = load_hubert()
        super().__init__(len(model.get_parameter("encoder.transformer.layer_norm.weight")), units, letters)
        self.layer, self.model = layer, (model,)  # a module in a tuple is not in the state
        self.teacher = f"HUBERT_BASE {digest(model)}, layer {layer}{', CTC of letters' if letters else ''}"

    def window_states(self, wave: Tensor) -> Tensor:
        model = self.model[0].to(wave.device)
        states, _ = model.extract_features(F.pad(wave, (PADDING, PADDING))[None], num_layers=self.layer)
        return states[-1][0].unflatten(0, (-1, 2)).mean(1)


def load_hubert() -> torchaudio.models.Wav2Vec2Model:
    """Wav2Vec2Model of HUBERT_BASE from the cache of torch.hub, or else a download. Raises DataError if that
    is impossible or the file is damaged."""
    try:
        bundle = torchaudio.pipelines.HUBERT_BASE
        model = bundle.get_model(dl_kwargs={"map_location": "cpu", "weights_only": True})
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{hubert_file()} cannot be loaded ({why}). It makes the semantic units of this codec: delete "
            f"what is there, and download {URL} to it."
        ) from error
    return model.requires_grad_(False)


def hubert_file() -> Path:
    """File of the weights in the cache of torch.hub."""
    return Path(torch.hub.get_dir(), "checkpoints", FILE)
