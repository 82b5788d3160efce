"""Orders of output modalities: whether a model was trained for one, and the way between two modalities."""

import itertools
from collections.abc import Sequence
from typing import Literal

from zipper.data.documents import Document
from zipper.errors import ConfigError
from zipper.models.multimodal import MultimodalModel


def check_prompts(
    model: MultimodalModel, prompts: Sequence[Document], order: Sequence[str] | Literal["auto"]
) -> None:
    """Raise ConfigError on an unknown modality, an empty prompt, an order that the model was not trained
    for, or `auto` without next-modality heads."""
    if not isinstance(order, Sequence) or not order:
        raise ConfigError(f"order={order!r}: give a list of modalities, such as ['text'], or 'auto'.")
    if isinstance(order, str) and order != "auto":
        raise ConfigError(f"order={order!r}: give a list of modalities, such as [{order!r}], or 'auto'.")
    if other := [one for one in order if not isinstance(one, str)]:
        raise ConfigError(f"order={order!r} holds {other[0]!r}. Give a list of modalities, such as ['text'].")
    if not all(prompt.segments for prompt in prompts):
        raise ConfigError("A prompt holds no segment: give text or speech.")
    then = [] if order == "auto" else list(order)
    for whole in {(*(s.modality for s in prompt.segments), *then) for prompt in prompts}:
        for name in whole:
            if name not in model.names:
                raise ConfigError(f"This model has no tower for {name!r}, only for {', '.join(model.names)}.")
        for before, name in itertools.pairwise(whole):
            if (name, before) not in model.used:
                trained = ", ".join(f"{a} after {b}" for a, b in sorted(model.used)) or "one modality alone"
                raise ConfigError(
                    f"This model was not trained to generate {name} after {before}, but {trained}. Choose "
                    "such an order, or train with configs/joint.yaml, which covers both directions."
                )
    if order == "auto" and not model.next_modality_heads:
        raise ConfigError(
            "This model was trained without model.next_modality_head=true: it has no next-modality head. "
            f"Name the order, such as {model.names[-1]} (`--then {model.names[-1]}`)."
        )


def route(model: MultimodalModel, source: str, order: Sequence[str]) -> list[str]:
    """Order with what lies between modalities that were not trained as a pair, such as the text between
    speech and an image: the shortest way over trained pairs. Where there is none, the order is unchanged."""
    out: list[str] = []
    for name in order:
        at = [*([source] if source in model.names else []), *out][-1:]
        out += _way(model, at[0], name) if at else [name]
    return out


def _way(model: MultimodalModel, start: str, end: str) -> list[str]:
    if start == end:
        return [end]
    ways = [[start]]
    seen = {start}
    while ways:
        ways = [[*way, query] for way in ways for query, source in model.used if source == way[-1]]
        if found := next((way for way in ways if way[-1] == end), None):
            return found[1:]
        ways = [way for way in ways if way[-1] not in seen]
        seen |= {way[-1] for way in ways}
    return [end]
