"""The best of several samples: the one from which the model itself is most likely to generate the prompt."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zipper.config import SamplingConfig
from zipper.data.batches import collate
from zipper.data.documents import Document, Segment
from zipper.errors import ConfigError
from zipper.modalities.layout import TokenLayout
from zipper.models.multimodal import MultimodalModel

BATCH = 200  # documents

Decode = dict[str, SamplingConfig]


def several(model: MultimodalModel, source: str, name: str, decode: Decode) -> int:
    """Samples of modality `name` after `source`. Raises ConfigError if the model was not trained for the way
    back, which scores them."""
    count = decode[name].candidates if name in decode else 1
    if count > 1 and (source, name) not in model.used:
        raise ConfigError(
            f"decode.{name}.candidates={count}: this model was not trained to find {source} after {name}, "
            "which chooses the best sample. Leave it out."
        )
    return count


def generate_best(
    model: MultimodalModel,
    prompts: Sequence[Document],
    order: Sequence[str],
    decode: Decode,
    sample: Callable[[list[Document], str, Decode], list],
) -> list[list]:
    """Generate a segment of each modality of `order`, each the best of its candidates.

    sample(prompts, modality, decode): one GenerationOutput for each prompt.
    """
    hops = [prompt.segments[-1] for prompt in prompts]
    out: list[list] = [[] for _ in prompts]
    single = {name: replace(how, candidates=1) for name, how in decode.items()}
    for turn, name in enumerate(order):
        counts = [several(model, hop.modality, name, decode) for hop in hops]
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        many = [
            Document(f"{prompts[i].id}/{turn}/{at}", [hops[i]], prompts[i].multimodal)
            for i, count in enumerate(counts)
            for at in range(count)
        ]
        found = sample(many, name, single)
        scores = log_likelihoods(
            model, [(one.as_prompt(), hops[i]) for one, i in zip(found, rows, strict=True)]
        )
        for i in range(len(prompts)):
            own = [at for at, row in enumerate(rows) if row == i]
            best = found[max(own, key=lambda at: float(scores[at]))]
            out[i].append(best)
            hops[i] = best.as_prompt()
    return out


@torch.no_grad()
def log_likelihoods(model: MultimodalModel, pairs: Sequence[tuple[Segment, Segment]]) -> Tensor:
    """Log-likelihood of the second segment of each pair after the first: float32 [N]. 0 if the model was not
    trained for that."""
    scores = torch.zeros(len(pairs))
    known = [at for at, (a, b) in enumerate(pairs) if (b.modality, a.modality) in model.used]
    device = next(model.parameters()).device
    for start in range(0, len(known), BATCH):
        part = known[start : start + BATCH]
        documents = [Document(str(at), [pairs[at][0], _scored(model, pairs[at][1])], True) for at in part]
        batch = collate(documents, model.cfg.codebooks).on(device)
        states = model(batch)
        for name in {pairs[at][1].modality for at in part}:
            stream = batch.streams[name]
            index = stream.loss_index
            loss = model.tower(name).cross_entropy(
                states[name].flatten(0, 1)[index], stream.target.flatten(0, 1)[index]
            )
            total = torch.zeros(len(part), device=device)
            total.index_add_(0, index // stream.valid.shape[1], loss.sum(-1).float())
            scores[part] -= total.cpu()
    return scores


def _scored(model: MultimodalModel, segment: Segment) -> Segment:
    layout = TokenLayout.of(model.cfg.towers[segment.modality])
    return Segment(segment.modality, segment.tokens, layout.scored(segment.tokens), 1.0)
