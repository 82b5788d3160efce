"""The paper's sizes: they build, they count what they should, and take a step in bfloat16."""

from dataclasses import replace

import pytest
import torch

from reproduce import ROOT
from zipper.config import ModelConfig, load_config
from zipper.data.batches import collate
from zipper.data.documents import Document, Segment
from zipper.models.lora import freeze_all_but_lora
from zipper.models.losses import stream_loss
from zipper.models.zipper import ZipperModel
from zipper.training.engine import prepare_layers
from zipper.training.optimiser import parameter_groups

pytestmark = pytest.mark.slow

# What the hub's config.json of these models says.
SMOLLM2 = {"rope_base": 1e5, "vocabulary": 49152, "codebooks": 1}
KNOWN = {
    "HuggingFaceTB/SmolLM2-135M": (
        {**SMOLLM2, "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "hidden": 1536}, 134_515_008,
    ),
    "HuggingFaceTB/SmolLM2-360M": (
        {**SMOLLM2, "layers": 32, "width": 960, "heads": 15, "kv_heads": 5, "hidden": 2560}, 361_821_120,
    ),
}  # fmt: skip
SPEECH = load_config(ROOT / "configs" / "tiny-128m-speech.yaml").model.towers["speech"]


def model_of(name: str) -> tuple[ModelConfig, int]:
    """The config's model with the shapes that its folders would give; parameters of its text tower."""
    cfg = load_config(ROOT / "configs" / f"{name}.yaml").model
    text, speech = cfg.towers["text"], cfg.towers["speech"]
    shape, count = KNOWN[text.init or ""]
    for key, value in shape.items():
        setattr(text, key, value)
    if speech.init:
        for key in ("layers", "width", "heads", "kv_heads", "hidden"):
            setattr(speech, key, getattr(SPEECH, key))
    speech.vocabulary, speech.codebooks = 1027, 2
    return cfg, count


@pytest.mark.parametrize(("name", "stages", "speech"), [("tiny-128m", 4, 128e6), ("gecko-128m", 8, 125e6)])
def test_parameters_are_as_expected(name, stages, speech):
    cfg, count = model_of(name)
    with torch.device("meta"):
        shapes = ZipperModel(cfg, {"text": 4.0, "speech": 75.0})
    assert shapes.stages == stages
    assert sum(p.numel() for p in shapes.tower("text").parameters()) == count
    assert sum(p.numel() for p in shapes.tower("speech").parameters()) == pytest.approx(speech, rel=0.01)


def test_a_step_in_bfloat16_lowers_the_loss():
    cfg, _ = model_of("tiny-128m")
    torch.manual_seed(0)
    model = ZipperModel(cfg, {"text": 4.0, "speech": 75.0})
    train = load_config(ROOT / "configs" / "tiny-128m.yaml").train
    prepare_layers(model, replace(train, compile=False))  # which takes a minute, and changes no figure
    model.tower("text").requires_grad_(False)
    model.train()
    draw = torch.Generator().manual_seed(0)
    spoken = torch.randint(1024, (20, 2), generator=draw)
    written = torch.randint(49152, (6, 1), generator=draw)
    segments = [
        Segment("speech", spoken, torch.ones_like(spoken, dtype=torch.bool), 0.0),
        Segment("text", written, torch.ones_like(written, dtype=torch.bool), 1.0),
    ]
    batch = collate(
        [Document("a", segments, True), Document("b", segments[::-1], True)], {"text": 1, "speech": 2}
    )
    groups = parameter_groups(model, 1e-3, 10.0, 0.01)
    optimiser = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model(batch)
            loss = sum(stream_loss(model.tower(n), states[n], s) for n, s in batch.streams.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[1] < losses[0] - 0.2


def test_lora_on_the_text_tower_is_a_hundredth_of_it():
    cfg, count = model_of("tiny-128m")
    cfg.towers["text"].frozen, cfg.towers["text"].lora = False, 8
    with torch.device("meta"):
        tower = ZipperModel(cfg, {"text": 4.0, "speech": 75.0}).tower("text")
    freeze_all_but_lora(tower)
    assert 0.01 < sum(p.numel() for p in tower.parameters() if p.requires_grad) / count < 0.03
