"""FLOPs per training token."""

from collections import Counter

from zipper.config import modalities_of
from zipper.data.schedule import BatchSchedule
from zipper.models.flops import document_flops
from zipper.models.multimodal import MultimodalModel


def flops_per_token(model: MultimodalModel, steps: BatchSchedule) -> dict[str, int]:
    """Mean FLOPs per token: forward, and forward with backward ("training").

    The mean is over all documents, with each task weighted by its share. Tokens are timesteps of speech and
    subwords, including BOS and EOS, without padding.
    """
    forward = training = tokens = 0.0
    names = list(steps.lengths)
    sizes = Counter(zip(*(steps.lengths[name].tolist() for name in names), strict=True))
    for task, share in steps.tasks.items():
        order = modalities_of(task)
        answers = order if steps.prompt_weight or len(order) == 1 else order[-1:]
        for sizes_of_row, times in sizes.items():
            length = dict(zip(names, sizes_of_row, strict=True))
            given = {name: length[name] for name in order}
            one = document_flops(model, given, {name: length[name] - 1 for name in answers})
            forward += share * times * one.forward
            training += share * times * one.training
            tokens += share * times * sum(given.values())
    return {"forward": round(forward / tokens), "training": round(training / tokens)}
