"""`ZipperModule` and `ZipperData` under a Trainer of one's own, with arguments that people give."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DistributedSampler

import zipper
from conftest import data_of, joined
from reproduce import ROOT
from zipper.cli import main
from zipper.config import SamplingConfig
from zipper.errors import ConfigError, TrainingError


class Seen(L.Callback):
    """Notes the first utterances of each batch, and the norms after clipping."""

    def __init__(self) -> None:
        self.batches, self.norms = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches.append(batch.ids)

    def on_train_batch_end(self, trainer, module, *_):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append((float(torch.nn.utils.get_total_norm(gradients)), gradients))


@pytest.fixture
def model(towers):
    return joined(towers)


def fit(model, data, module=None, ckpt_path=None, **settings) -> tuple[L.Trainer, Seen]:
    seen = Seen()
    callbacks = [seen, *settings.pop("callbacks", [])]
    how = {"max_steps": 3, "limit_val_batches": 0, "enable_checkpointing": False, "logger": False, **settings}
    trainer = L.Trainer(accelerator="cpu", callbacks=callbacks, **how)
    trainer.fit(module or zipper.ZipperModule(model, warmup=1), data, ckpt_path=ckpt_path)
    return trainer, seen


def test_a_limit_of_batches_ends_an_epoch_and_the_next_goes_on(manifest, model):
    data = data_of(manifest, model, {"asr": 1})
    found = [fit(model, data, max_steps=7, **limit)[1].batches for limit in ({}, {"limit_train_batches": 3})]
    assert found[0] == found[1]
    assert len({*map(tuple, found[0])}) > 3
    fit(model, data, overfit_batches=2)


def test_batches_can_be_looked_at_without_a_trainer(manifest, model):
    data = data_of(manifest, model, {"asr": 1})
    batch, other = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert batch.streams.keys() == other.streams.keys() == {"text", "speech"}
    assert batch.ids == fit(model, data, max_steps=1)[1].batches[0]


def test_lightning_leaves_the_sampler_of_several_processes_alone(manifest, model):
    """Its own would give every process other steps. The settings need not say how many there are."""
    data = data_of(manifest, model, {"asr": 1})
    two = [
        SimpleNamespace(
            max_steps=3, global_step=0, world_size=2, global_rank=rank, accumulate_grad_batches=1,
            accelerator=None,
        )
        for rank in range(2)
    ]  # fmt: skip
    halves = []
    for data.trainer in two:
        loader = data.train_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)
        halves.append([batch.ids for batch in loader])
    data.trainer = None
    whole = [batch.ids for _, batch in zip(range(3), data.train_dataloader(), strict=False)]
    assert [sorted([*a, *b]) for a, b in zip(*halves, strict=True)] == [sorted(ids) for ids in whole]


@pytest.mark.parametrize("settings", [{"max_epochs": 1}, {"max_epochs": 3}])
def test_a_training_without_steps_is_refused(manifest, model, settings):
    data = data_of(manifest, model, {"asr": 1})
    with pytest.raises(ConfigError, match=r"max_epochs=\d.*Give the Trainer max_steps; one pass .* has \d+"):
        fit(model, data, max_steps=-1, **settings)


def test_data_of_other_tasks_than_the_modules_are_refused(manifest, model):
    first = data_of(manifest, model, {"asr": 1})
    data_of(manifest, model, {"tts": 1})
    with pytest.raises(ConfigError, match=r"make it after ZipperData.*and after no other"):
        fit(model, first)


@pytest.mark.parametrize(
    "name", ["codebook_weights", "prompt_weight", "tokens", "steps", "devices", "clip", "tasks"]
)
def test_settings_of_the_data_or_the_trainer_are_no_settings_of_the_module(manifest, model, name):
    data_of(manifest, model, {"asr": 1})
    with pytest.raises(
        ConfigError, match=rf"ZipperModule\({name}=\.\.\.\): that is no setting of the module"
    ):
        zipper.ZipperModule(model, **{name: 2})


def test_settings_of_the_module_are_those_of_the_model_and_of_its_layers(manifest, model):
    data_of(manifest, model, {"asr": 1})
    zipper.ZipperModule(model, lr=5e-4, activation_checkpointing=True)
    assert model.config.train.lr == 5e-4
    assert all(layer.activation_checkpointing for layer in model.network.tower("speech").layers)


def test_a_model_of_one_tower_learns(towers, manifest):
    model = zipper.Zipper.from_towers(text=towers["text"])
    data = data_of(manifest, model, {"text": 1})
    before = {name: w.clone() for name, w in model.network.tower("text").state_dict().items()}
    fit(model, data, zipper.ZipperModule(model, lr=1e-3))
    after = model.network.tower("text").state_dict()
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    data_of(manifest, model, {"text": 1})


@pytest.mark.parametrize("setting", ["codec.pattern=parallel", "codec.codebooks=2", "data.tokenizer=nowhere"])
def test_data_cannot_change_codec_or_tokenizer(manifest, model, setting):
    with pytest.raises(ConfigError, match=r"overrides change the codec or tokenizer.*from_towers"):
        data_of(manifest, model, {"asr": 1}, setting)


def test_gradients_are_clipped_as_the_trainer_says(manifest, model):
    data = data_of(manifest, model, {"asr": 1})
    how = {"gradient_clip_val": 1e-3, "max_steps": 1}
    by_norm = fit(model, data, **how)[1].norms[0][0]
    by_value, gradients = fit(model, data, gradient_clip_algorithm="value", **how)[1].norms[0]
    assert by_norm == pytest.approx(1e-3, rel=1e-3)
    assert by_value > 2e-3
    assert max(float(one.abs().max()) for one in gradients) <= 1e-3 + 1e-9


def test_a_scaled_loss_is_clipped_unscaled_and_an_overflow_is_skipped(manifest, model):
    data = data_of(manifest, model, {"asr": 1})
    start = {name: w.clone() for name, w in model.network.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = fit(
        model, data, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], gradient_clip_val=1e-3, max_steps=1
    )[1]
    assert scaled.norms[0][0] == pytest.approx(1e-3, rel=0.01)
    model.network.load_state_dict(start)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    fit(model, data, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_steps=1)
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, start[name]), name
    assert scaler.get_scale() < 2.0**120
    for parameter in model.network.tower("text").parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="the loss is not finite"):
        fit(model, data, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_accumulation_stays_as_it_was_planned(manifest, model, tmp_path):
    data = data_of(manifest, model, {"asr": 1})
    with pytest.raises(ConfigError, match="Leave GradientAccumulationScheduler out"):
        fit(model, data, callbacks=[GradientAccumulationScheduler({0: 2})])
    trainer, _ = fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches=2\), but the checkpoint .* with 1"):
        fit(model, data, ckpt_path=tmp_path / "a.ckpt", accumulate_grad_batches=2, max_steps=5)
    fit(model, data, ckpt_path=tmp_path / "a.ckpt", max_steps=5)


def test_lightning_finds_a_learning_rate(manifest, model, tmp_path):
    data = data_of(manifest, model, {"asr": 1})
    module = zipper.ZipperModule(model, warmup=1)
    finder = LearningRateFinder(num_training_steps=14, early_stop_threshold=None)
    fit(model, data, module, callbacks=[finder], default_root_dir=tmp_path, enable_checkpointing=True)
    assert module.lr != module.cfg.train.lr


def test_directions_that_were_trained_stay_when_others_are_trained(manifest, model):
    data = data_of(manifest, model, {"asr": 1, "tts": 1})
    fit(model, data)
    data_of(manifest, model, {"tts": 1})
    model.transcribe(torch.randn(16_000) / 10)
    model.save_pretrained("kept")
    kept = zipper.Zipper.from_pretrained("kept")
    before = {n: w for n, w in model.network.state_dict().items() if "text_from_speech" in n}
    assert before
    for name, weight in before.items():
        torch.testing.assert_close(kept.network.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    kept.transcribe(torch.randn(16_000) / 10)
    fit(kept, data_of(manifest, kept, {"tts": 1}))
    for name in before:
        trained = kept.network.state_dict()[name]
        torch.testing.assert_close(trained, before[name], atol=1e-3, rtol=1e-3)


def test_a_frozen_towers_folder_may_go_once_it_is_joined(towers, manifest, model, monkeypatch, tmp_path):
    fit(model, data_of(manifest, model, {"asr": 1}))
    towers["text"].rename(tmp_path / "elsewhere")
    model.save_pretrained("saved")
    assert zipper.Zipper.from_pretrained("saved").network.certificate.keys() == {"text"}


def test_a_model_in_few_bits_is_saved_in_half_precision(tmp_path):
    """It was trained for its 4 bits, which half precision holds."""
    model = zipper.Zipper.from_pretrained(ROOT / "assets/real")
    model.save_pretrained(tmp_path / "half")
    half = zipper.Zipper.from_pretrained(tmp_path / "half")
    for name, weight in model.network.state_dict().items():
        torch.testing.assert_close(half.network.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    main(["export", str(tmp_path / "half"), str(tmp_path / "again")])
    assert zipper.Zipper.from_pretrained(tmp_path / "again").config.export_bits == 16


def test_quantised_weights_are_not_averaged(manifest, model):
    data = data_of(manifest, model, {"asr": 1}, "export_bits=4")
    module = zipper.ZipperModule(model, quantise=True)
    with pytest.raises(ConfigError, match=r"quantise=true with a callback that averages weights"):
        fit(model, data, module, callbacks=[EMAWeightAveraging()])


def test_a_head_of_ctc_that_is_not_trained_any_more_goes(manifest, model):
    """It would read states that move without it, and DDP refuses weights that are not used."""
    data = data_of(manifest, model, {"asr": 1})
    fit(model, data, zipper.ZipperModule(model, warmup=1, ctc=0.3))
    model.config.decode["text"] = SamplingConfig(beams=2, ctc=0.3)
    model.save_pretrained("heard")
    for ctc in (0.3, 0.0):
        again = zipper.Zipper.from_pretrained("heard")
        assert again.network.ctc is not None
        data = data_of(manifest, again, {"asr": 1})
        fit(again, data, zipper.ZipperModule(again, warmup=1, ctc=ctc))
        assert (again.network.ctc is not None) == bool(ctc)
        assert again.config.decode["text"] == SamplingConfig(beams=2, ctc=ctc)
        again.save_pretrained(f"again{ctc}")
        zipper.Zipper.from_pretrained(f"again{ctc}")


def test_the_learning_rate_is_that_of_the_step(manifest, model):
    data, rates = data_of(manifest, model, {"asr": 1}), []
    module = zipper.ZipperModule(model, lr=1e-3, warmup=8)

    class Rate(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(model, data, module, max_steps=4, callbacks=[Rate()])
    assert len({*rates}) == 4
