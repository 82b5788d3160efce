"""Quantisation-aware training (`train.quantise`)."""

from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import WORDS
from zipper.cli import main
from zipper.config import RunConfig, load_config
from zipper.errors import ConfigError
from zipper.evaluation.result_file import read_result
from zipper.generation.exported import load_model
from zipper.training import run as run_module
from zipper.training.module import ZipperModule
from zipper.training.rounding import RoundedWeights
from zipper.weight_files import as_kept

QUANTISE = ["train.quantise=true", "export_bits=4", "train.tasks={asr: 1}", "evaluate.mismatched=false"]


def config(*words: str) -> RunConfig:
    return load_config(None, [*WORDS, *QUANTISE, *words])


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_model(Path(folder)).network.state_dict()


def test_the_gradient_is_that_of_rounded_weights_and_the_update_goes_to_exact_ones():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 128), torch.randn(5, 64)
    exact = [weight.detach().clone() for weight in layer.parameters()]
    rounding = RoundedWeights([*layer.parameters()], 4)
    rounding.round()
    loss = layer(x).square().sum()
    loss.backward()
    rounding.round()  # as after a step that was cut off
    rounding.restore()
    rounding.restore()
    assert all(torch.equal(weight, old) for weight, old in zip(layer.parameters(), exact, strict=True))
    at = [as_kept(weight, 4).requires_grad_() for weight in exact]
    assert not torch.equal(at[0], exact[0])
    slow = nn.functional.linear(x, *at).square().sum()
    slow.backward()
    assert torch.equal(loss, slow)
    assert all(torch.equal(weight.grad, one.grad) for weight, one in zip(layer.parameters(), at, strict=True))


@pytest.mark.usefixtures("prepared")
def test_what_is_scored_is_what_is_exported_and_checkpoints_are_exact(monkeypatch):
    monkeypatch.setattr("zipper.weight_files.SMALLEST", 64)  # the matrices of these models are small
    in_steps = []
    step = ZipperModule.validation_step

    def watched(module, batch, index):
        in_steps.append({name: weight.clone() for name, weight in module.model.state_dict().items()})
        return step(module, batch, index)

    monkeypatch.setattr(ZipperModule, "validation_step", watched)
    cfg = config("name=run", "export=small")
    scored = run_module.train(cfg, "x")["asr"]
    saved = torch.load(cfg.run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    exact = {name.removeprefix("model."): weight for name, weight in saved.items()}
    small, run = weights("small"), weights("build/runs/run")
    assert all(torch.equal(weight, run[name]) for name, weight in small.items())
    matrices = [name for name in small if small[name].ndim > 1 and small[name].numel() >= 64]
    trained = [name for name in matrices if not torch.equal(small[name], exact[name])]
    assert any("zips" in name for name in trained)
    assert all(torch.equal(small[name], as_kept(exact[name], 4)) for name in trained)
    assert any(all(torch.equal(one[name], small[name]) for name in trained) for one in in_steps)
    main(["evaluate", "small", "name=again", "evaluate.mismatched=false"])
    again = read_result(Path("build/runs/again/asr-test.json"))
    assert again["per_utterance"] == scored["per_utterance"]


def test_settings_that_do_not_work_together_are_refused():
    with pytest.raises(ConfigError, match=r"quantise=true with export_bits=16.*export_bits=4"):
        config("export_bits=16")
    with pytest.raises(ConfigError, match=r"quantise=true with train\.strategy=fsdp2"):
        config("train.strategy=fsdp2")
    lora = ["model.modalities=[text]", "train.tasks={asr: 0, text: 1}", "model.towers.text.lora=2"]
    with pytest.raises(ConfigError, match=r"quantise=true with model\.towers\.text\.lora"):
        run_module.pretrain(config(*lora), "x")


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_is_cut_off_leaves_exact_weights(monkeypatch, error):
    monkeypatch.setattr("zipper.weight_files.SMALLEST", 64)
    kept = []

    def cut_off(module, *_):
        kept.append(module)
        assert module.rounded.exact
        raise error

    monkeypatch.setattr(ZipperModule, "training_step", cut_off)
    with pytest.raises((error, SystemExit)):
        run_module.train(config("name=cut"), "x")
    (module,) = kept
    assert module.rounded.exact == []
    assert not torch.equal(module.rounded.weights[0], as_kept(module.rounded.weights[0].data, 4))
