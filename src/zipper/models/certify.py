"""Certificate that frozen towers equal their pre-trained ones: shape, hashes of weights, reference logits.

It is computed from the files of the pre-trained towers, not from the trained network. A tower that is frozen
by config but was trained by mistake therefore does not pass.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from zipper.errors import DataError
from zipper.hub import model_folder
from zipper.models.multimodal import MultimodalModel
from zipper.models.pretrained import SHAPE, read_tower
from zipper.models.tower import Tower
from zipper.weight_files import as_kept

TOKENS, ROWS = 8, 16  # reference logits: number of tokens, number of ids
TOLERANCE = 1e-3  # relative to the largest logit; rounding differs between machines


def certificate(network: MultimodalModel) -> dict[str, Any]:
    """Certificate by modality, for every frozen tower with `init`: its source, its shape, the hash of each
    weight, and reference logits. All in half precision, as in exports. A network that was loaded from an
    export, or fine-tuned from one, keeps its certificate, so that the folders of its towers are not
    needed."""
    found = {}
    for name in network.names:
        cfg = network.cfg.towers[name]
        if not cfg.frozen:
            continue
        known = network.certificate.get(name, {})
        if known and cfg.init in (None, known["init"]):
            found[name] = known
        elif cfg.init:
            tower = _halved(read_tower(model_folder(cfg.init)))
            weights = {key: _digest(weight) for key, weight in tower.state_dict().items()}
            shape = {key: getattr(tower.cfg, key) for key in SHAPE}
            logits = _logits(tower).tolist()
            found[name] = {"init": cfg.init, "shape": shape, "weights": weights, "logits": logits}
    return found


def round_frozen(network: MultimodalModel, bits: int) -> None:
    """Round the frozen towers as files in so many bits hold them. Their certificate is that of the rounded
    weights from then on. Raises DataError if they are not as pre-trained before."""
    certified = certificate(network)
    check_certificate(network, certified)
    renewed = {}
    for name, entry in certified.items():
        if name in network.cfg.kept:  # of model.init, whose file stays as it is
            renewed[name] = entry
            continue
        tower = network.tower(name)
        tower.load_state_dict({key: as_kept(weight, bits) for key, weight in tower.state_dict().items()})
        weights = {key: _digest(weight) for key, weight in tower.state_dict().items()}
        renewed[name] = {**entry, "bits": bits, "weights": weights, "logits": _logits(tower).tolist()}
    network.certificate = renewed


def check_certificate(network: MultimodalModel, certified: dict[str, Any]) -> None:
    """Raise DataError with the name of the first tower and weight that differ from the certificate, or of
    the tower whose weights match but whose shape or logits differ. network: as loaded from the export."""
    for name in network.names:
        owned = network.cfg.towers[name].frozen and name not in network.cfg.kept  # not read from model.init
        if owned and name not in certified:
            raise DataError(f"Tower {name} is frozen, but is not in the certificate. Export it again.")
    for name, expected in certified.items():
        tower = network.tower(name)
        for key, value in expected.get("shape", {}).items():  # which the weights do not show
            if getattr(tower.cfg, key) != value:
                raise DataError(
                    f"Tower {name} has {key}={getattr(tower.cfg, key)}, but {expected['init']} had {value}. "
                    "Restore zipper.json."
                )
        state = tower.state_dict()
        if {*state} != {*expected["weights"]}:
            first = sorted({*state} ^ {*expected["weights"]})[0]
            raise DataError(f"Tower {name} has other weights than {expected['init']}: {first}.")
        for key, digest in expected["weights"].items():
            if _digest(state[key]) != digest:
                raise DataError(
                    f"Tower {name}: {key} is not that of {expected['init']}. It was changed after the "
                    "export, trained although the tower is frozen, or rounded by the Trainer (bf16-true)."
                )
        reference = torch.tensor(expected["logits"])
        difference = float((_logits(tower) - reference).abs().max())
        if not difference <= TOLERANCE * float(reference.abs().max()):
            raise DataError(
                f"Tower {name} has the weights of {expected['init']}, but other logits ({difference:.2g}). "
                "This version of the library computes differently: use the version that exported it."
            )


def _halved(tower: Tower) -> Tower:
    for parameter in tower.parameters():
        parameter.data = parameter.data.half().float()
    return tower


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().half().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def _logits(tower: Tower) -> Tensor:
    """Reference logits of the first codebook: [TOKENS, ROWS]."""
    cfg = tower.cfg
    count = torch.arange(TOKENS * cfg.codebooks, device=tower.weight.device)
    tokens = (count * 7 + 1).remainder(cfg.vocabulary).view(1, TOKENS, cfg.codebooks)
    return tower.eval().logits(tower(tokens))[0, :, 0, :ROWS].float().cpu()
