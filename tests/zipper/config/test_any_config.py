"""Any config: it builds and takes a step, or it is a ConfigError; never anything else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import config
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError
from zipper.models.losses import stream_loss
from zipper.models.resolve import check_towers, resolve
from zipper.training.data import ZipperData
from zipper.training.module import ZipperModule
from zipper.training.optimiser import parameter_groups


def mostly(*values, odd=()):
    """Of values that go together, and now and then of those that may not."""
    return st.integers(0, 40).flatmap(lambda dice: st.sampled_from(odd if odd and dice == 0 else values))


TOWER = {
    "layers": mostly(2, 3, odd=(1,)), "interval": mostly(1, odd=(0, 2, 4)),
    "width": mostly(8, 16, 24, odd=(10,)),
    "heads": mostly(2, odd=(1, 3)), "kv_heads": mostly(1, 2), "hidden": mostly(4, 16),
    "dropout": mostly(0.0, 0.3, odd=(1.0,)), "frozen": mostly("false", odd=("true",)),
    "lora": mostly(0, odd=(2, -1)), "tied": mostly("true", "false"), "qk_norm": mostly("true", "false"),
    "input_projection": mostly("residual", "paper", odd=("none",)),
}  # fmt: skip
TASKS = ("{asr: 1}", "{asr: 0, tts: 1}", "{asr: 1, tts: 1.26}", "{asr: 0, speech: 1, text: 0.5}")
WHOLE = {
    "model.kind": mostly("zipper", odd=("single_decoder",)),
    "model.next_modality_head": mostly("true", "false"),
    "model.zip.heads": mostly(1, 2, 4, odd=(3,)),
    "model.zip.position": mostly("none", "rotary"),
    "model.zip.projection_depth": mostly(1, 3, odd=(0,)), "model.zip.gate_init": mostly(0.0, 0.5),
    "train.tasks": mostly(*TASKS, odd=("{asr: 0}",)), "train.tokens": mostly(300, odd=(20,)),
    "train.accumulate": mostly(1, 2, odd=(50,)), "train.history_mask": mostly(0.0, 0.5),
    "train.prompt_weight": mostly(0.0, odd=(0.3,)),
    "train.codebook_weights": mostly("[]", "[2,1,1]", odd=("[1]",)),
    "train.optimiser": mostly("adamw", "adafactor"),
    "model.modalities": mostly("[text,speech]", odd=("[speech]",)),
}  # fmt: skip
made = {"built": 0, "refused": 0}


@given(st.fixed_dictionaries(TOWER), st.fixed_dictionaries(TOWER), st.fixed_dictionaries(WHOLE))
@settings(max_examples=120)
def test_a_config_builds_and_steps_or_is_refused(dataset, text, speech, whole):
    words = [f"model.towers.text.{key}={value}" for key, value in text.items()]
    words += [f"model.towers.speech.{key}={value}" for key, value in speech.items()]
    words += [f"{key}={value}" for key, value in whole.items()]
    try:
        cfg = config(*words)
        check_towers(cfg)
        cfg = resolve(cfg, dataset)
        data = ZipperData.of(cfg, dataset)
    except ConfigError:
        made["refused"] += 1
        return
    made["built"] += 1
    module = ZipperModule.of(cfg, measure_statistics(dataset))
    module.on_train_start()
    batch = data.steps.batch(0, 0, data.codebooks)
    states = module.model(batch)
    loss = sum(stream_loss(module.model.tower(name), states[name], s) for name, s in batch.streams.items())
    groups = parameter_groups(module.model, 1e-3, 10.0, 0.01)
    loss.backward()
    torch.optim.AdamW(groups).step()
    assert torch.isfinite(loss)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_both_happen():
    """Else the test above proves nothing."""
    assert min(made.values()) > 30
