"""A training step asks the device for no number: such a question waits until all work before it is done."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import JOINT, module_for, training_documents
from zipper.data.batches import collate

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Questions(TorchDispatchMode):
    """Notes the operators that an accelerator could not do without telling the CPU a number or a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITS or masks:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["zipper", "single_decoder"])
def test_a_training_step_asks_the_device_for_nothing(prepared, kind):
    words = [f"model.kind={kind}", "train.codebook_weights=[2.0,1.0,0.5]", "model.towers.speech.width=16"]
    words += [
        "model.next_modality_head=true",
        "train.history_mask=0.3" if kind == "zipper" else "train.prompt_weight=0.3",
    ]
    module = module_for(prepared, *JOINT, *words)
    batch = collate(training_documents(prepared, 4, "asr", "tts"), {"text": 1, "speech": 3})
    module.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    module.log = lambda *_, **__: None
    with Questions() as questions:
        module.training_step(batch, 0).backward()
    assert questions.asked == []
    assert module.units == sum(int(stream.valid.sum()) for stream in batch.streams.values())
    with Questions() as questions:
        _ = batch.streams["text"].tokens[batch.streams["text"].valid]
        _ = bool(batch.multimodal.any())
    assert questions.asked == ["index", "_local_scalar_dense"]
