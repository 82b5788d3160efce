"""FLOPs per training token."""

from collections import Counter

from zipper.config import TASKS
from zipper.data.schedule import BatchSchedule
from zipper.models.flops import document_flops
from zipper.models.multimodal import MultimodalModel


def flops_per_token(model: MultimodalModel, steps: BatchSchedule) -> dict[str, int]:
    """Mean FLOPs per token: forward, and forward with backward ("training").

    The mean is over all documents, with each task weighted by its share. Tokens are timesteps of speech and
    subwords, including BOS and EOS, without padding.
    """
    forward = training = tokens = 0.0
    sizes = Counter(zip(steps.subwords.tolist(), steps.speech.tolist(), strict=True))
    for task, share in steps.tasks.items():
        order = TASKS[task]
        answers = order if steps.prompt_weight or len(order) == 1 else order[-1:]
        for (subwords, columns), times in sizes.items():
            length = {"text": subwords + 2, "speech": columns}
            given = {name: length[name] for name in order}
            one = document_flops(model, given, {name: length[name] - 1 for name in answers})
            forward += share * times * one.forward
            training += share * times * one.training
            tokens += share * times * sum(given.values())
    return {"forward": round(forward / tokens), "training": round(training / tokens)}
