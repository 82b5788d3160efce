"""LoRA: a third state of a tower beside frozen and unfrozen."""

from pathlib import Path

import pytest
import torch

from conftest import config
from zipper.config import TowerConfig
from zipper.generation.exported import load_trained
from zipper.models.lora import LoRA, add_lora, merged_state
from zipper.models.pretrained import load_weights, read_tower, save_tower
from zipper.models.tower import Tower
from zipper.training import run as run_module

SHAPE = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "hidden": 24, "vocabulary": 11, "codebooks": 1}
TOKENS = torch.randint(11, (2, 9, 1), generator=torch.Generator().manual_seed(0))


def test_it_starts_as_the_tower_itself_and_every_matrix_has_one():
    plain = Tower(TowerConfig(**SHAPE))
    tower = Tower(TowerConfig(**SHAPE, lora=3))
    tower.load_state_dict({**tower.state_dict(), **plain.state_dict()})
    assert torch.equal(tower(TOKENS), plain(TOKENS))
    added = [n for n, _ in tower.named_parameters() if ".lora_" in n]
    assert len(added) == 2 * 2 * 4


def test_merged_into_a_plain_tower_it_says_the_same():
    tower = Tower(TowerConfig(**SHAPE, lora=3)).double()
    for name, parameter in tower.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = Tower(TowerConfig(**SHAPE)).double()
    before = plain(TOKENS)
    plain.load_state_dict(merged_state(tower))
    torch.testing.assert_close(plain(TOKENS), tower(TOKENS))
    assert not torch.allclose(before, plain(TOKENS))


def test_a_saved_tower_has_it_merged_and_one_with_lora_starts_from_a_plain_folder(tmp_path):
    tower = Tower(TowerConfig(**SHAPE, lora=2))
    for name, parameter in tower.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.3)
    save_tower(tmp_path, tower, {"reads": "x", "trained_on": None})
    plain = Tower(TowerConfig(**SHAPE))
    plain.load_state_dict({name: w.half().float() for name, w in merged_state(tower).items()})
    assert torch.equal(read_tower(tmp_path)(TOKENS), plain(TOKENS))
    again = Tower(TowerConfig(**SHAPE))
    add_lora(again, 4)
    load_weights(again, tmp_path)
    torch.testing.assert_close(again(TOKENS), plain(TOKENS))


def test_a_run_moves_lora_and_leaves_the_towers_own_weights(prepared):
    words = ["model.towers.text.lora=2", "model.towers.speech.frozen=true", "train.lr=0.01"]
    result = run_module.train(config(*words), "x")["asr"]
    model = load_trained(Path("build/runs/run/checkpoints/last.ckpt")).network
    torch.manual_seed(0)
    learnt = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("towers.")}
    assert learnt
    assert all(".text." in name and ".lora_" in name for name in learnt)
    assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith("lora_b"))
    assert result["parameters_trained"] < result["parameters_total"] / 2


def test_a_low_rank_update_starts_with_inputs_of_one_scale():
    torch.manual_seed(0)
    lora = LoRA(torch.nn.Linear(400, 8), 64)
    assert float((torch.randn(50, 400) @ lora.lora_a.detach().T).std()) == pytest.approx(1, rel=0.1)
