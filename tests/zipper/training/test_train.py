"""Training through Lightning, on a store of noise: frozen stays frozen, resumed equals unbroken, small sets
are learnt.
"""

import math
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml

from conftest import as_batch, config, module_for, tiny_model, transcribe
from reproduce import ROOT
from zipper.config import TrainCodecConfig, TrainConfig, load_config, read_json
from zipper.data.documents import Document, Segment
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError
from zipper.evaluation.result_file import read_result
from zipper.evaluation.tasks import load_scorers
from zipper.generation.exported import ORIGIN, export
from zipper.modalities.normalise import NORMALISER, PLAIN
from zipper.modalities.scoring import Score, total_errors
from zipper.models.losses import stream_loss, training_loss
from zipper.models.resolve import resolve
from zipper.training import run as run_module
from zipper.training.callbacks import GateMonitor, TaskMonitor, Throughput
from zipper.training.codec import CodecModule
from zipper.training.crops import Crops
from zipper.training.data import ZipperData
from zipper.training.module import ZipperModule
from zipper.training.optimiser import optimiser_of, parameter_groups


def state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.rendered
def test_a_run_leaves_everything_that_a_reader_needs(prepared, capsys):
    cfg = config("name=one", "result=elsewhere/one.json")
    result = run_module.train(cfg, "python -m zipper train x.yaml")["asr"]
    files = {p.relative_to(cfg.run_dir).as_posix() for p in cfg.run_dir.rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.csv", "result.json", "asr.json", "asr.tsv", "tokenizer.json"} <= files
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files
    figures = {f"figures/{name}.png" for name in ("learning-curve", "gates", "attention-text-speech")}
    assert {"asr.utterances.jsonl.xz", *figures} <= files
    assert set(result["stage_seconds"]) == {"train", "evaluate", "draw"}
    assert 0 < result["wall_seconds"] <= result["stage_seconds"]["train"] + 0.1  # without building the model
    shown = capsys.readouterr().out
    assert result["per_utterance"][0]["reference"] in shown
    assert "step 0:" not in shown  # nothing is validated before it is trained
    assert shown.rstrip().splitlines()[-1].startswith("ASR WER")
    assert read_result(cfg.run_dir / "asr.json") == read_result(Path("elsewhere/one.json"))
    assert read_result(cfg.run_dir / "result.json", utterances=False)["test/asr/wer"] == result["wer"]
    assert result["normaliser"] in (NORMALISER, PLAIN)
    assert result["model"] == "zipper"
    assert result["task"] == "asr"
    assert result["utterances"] == len(result["per_utterance"]) == 6
    assert result["words"] == sum(one["words"] for one in result["per_utterance"])
    assert result["wer"] == pytest.approx(result["errors"] / result["words"], abs=1e-6)
    assert result["data_fingerprint"] == prepared.fingerprint
    assert set(result["per_utterance"][0]) == {
        "id", "errors", "words", "seconds", "reference", "hypothesis", "stopped"
    }  # fmt: skip
    # The speech-to-text zips alone are used.
    assert 0 < result["parameters_trained"] < result["parameters_total"]
    assert load_config(cfg.run_dir / "config.yaml").model == resolve(cfg, prepared).model
    header = (cfg.run_dir / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    for metric in ("train/loss_text", "train/padding", "dev/wer", "dev/loss", "gate/"):
        assert metric in header


def test_a_run_that_is_exported_later_says_how_it_was_trained(prepared):
    cfg = config("name=one", "export=at-once")
    run_module.train(cfg, "python -m zipper train x.yaml")
    export(cfg.run_dir, Path("later"), bits=8, frozen_too=False)
    at_once, later = (read_json(Path(folder) / "zipper.json") for folder in ("at-once", "later"))
    assert [later[name] for name in ORIGIN] == [at_once[name] for name in ORIGIN]
    assert "test/asr/wer" in at_once.keys() - later.keys()  # of other bits


def test_online_a_run_taken_up_again_is_one_run_and_offline_another(in_tmp, monkeypatch):
    made = []
    monkeypatch.setattr(run_module, "WandbLogger", lambda **words: made.append(words))
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    for mode in ("online", "online", "offline"):
        run_module.loggers(config("name=followed", f"log.wandb={mode}"))
    run_module.loggers(config("name=another", "log.wandb=online"))
    assert made[0]["id"] == made[1]["id"] != made[3]["id"]
    assert made[0]["resume"] == "allow"
    assert "id" not in made[2]


def test_any_split_can_be_reported_on_and_audio_may_be_gone(prepared, monkeypatch):
    gone = SimpleNamespace(is_file=lambda: False)
    monkeypatch.setattr("zipper.evaluation.samples.Path", lambda _: gone)
    result = run_module.train(config("name=own", "log.wandb=offline", "evaluate.split=train"), "x")["asr"]
    assert result["split"] == "train"
    tables = {path.parent.name for path in Path("build/runs/own").glob("wandb/*/files/media/table/*/*.json")}
    assert tables == {"dev", "train"}


def test_a_strange_folder_and_another_config_are_refused(prepared):
    folder = Path("build/runs/mine")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="not the folder of a run"):
        run_module.train(config("name=mine"), "x")
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
    run_module.claim_run_dir(config("name=half"))
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.001 -> 0\.1"):
        run_module.claim_run_dir(config("name=half", "train.lr=0.1"))


def test_two_accumulated_micro_batches_train_like_one_batch(prepared, monkeypatch):
    """Through Lightning, on the same steps: also what two ranks would do, with a step cut between them."""
    cut = BatchSchedule._make_epoch

    def cut_for_two(self, epoch):
        slices, self.slices = self.slices, 2
        plans = cut(self, epoch)
        self.slices = slices
        return plans

    monkeypatch.setattr(BatchSchedule, "_make_epoch", cut_for_two)
    monkeypatch.setattr(
        ZipperModule, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=0.3)
    )
    for accumulate in (1, 2):
        words = [f"name=a{accumulate}", f"train.accumulate={accumulate}", "train.prompt_weight=0.3"]
        run_module.train(
            config(*words, "train.precision=64-true", "train.clip=1000", "train.tokens=600"), "x"
        )
    one, two = state(Path("build/runs/a1")), state(Path("build/runs/a2"))
    fresh = module_for(prepared).state_dict()
    assert (one["model.towers.text.embedding.weight"] != fresh["model.towers.text.embedding.weight"]).any()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-12)


def test_a_frozen_tower_trains_without_its_dropout(prepared):
    words = ["model.towers.text.frozen=true", "model.towers.text.dropout=0.2"]
    module = module_for(prepared, *words).eval()
    module.on_train_start()
    assert module.model.tower("speech").training
    assert module.model.zip(0, "text", "speech").training
    assert not any(part.training for part in module.model.tower("text").modules())


def test_every_trained_weight_has_a_gradient_though_one_modality_alone_is_scored():
    """DDP waits for all of them."""
    model = tiny_model().train()
    parts = {name: torch.ones(5, model.cfg.codebooks[name], dtype=torch.int64) for name in model.names}
    segments = [
        Segment(name, parts[name], torch.full_like(parts[name], name == "text", dtype=torch.bool), 1.0)
        for name in ("speech", "text")
    ]
    loss, parts = training_loss(model, as_batch(model, [Document("asr", segments, True)]), TrainConfig(), 1)
    assert parts.keys() == {"text"}
    loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_loss_on_dev_is_the_mean_over_tokens_not_over_batches(prepared):
    """Of batches of several sizes."""
    words = ["train.tasks={asr: 1, tts: 1}", "train.tokens=150"]
    module, data = module_for(prepared, *words), ZipperData.of(resolve(config(*words), prepared), prepared)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    [found] = trainer.validate(module, data, verbose=False)
    for name in ("text", "speech"):
        losses, counts = [], []
        for batch in data.val_dataloader():
            stream = batch.streams[name]
            states = module.model(batch)[name].detach()
            losses.append(float(stream_loss(module.model.tower(name), states, stream)))
            counts.append(int((stream.weight[..., None] * (stream.target != -100)).sum()))
        assert len({*counts}) > 1
        assert found[f"dev/loss_{name}"] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)


def test_idle_zips_are_named_and_left_as_they_were(prepared, capsys):
    cfg = config("name=idle", "train.weight_decay=0.5")
    run_module.train(cfg, "x")
    out = capsys.readouterr().out
    assert "zips.0.speech_from_text" in out
    fresh = module_for(prepared)
    after = state(cfg.run_dir)
    moved = {name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, after[name])}
    assert not any("speech_from_text" in name for name in moved)
    assert any("text_from_speech" in name for name in moved)
    trained = {id(p) for group in parameter_groups(fresh.model, 1, 1, 1) for p in group["params"]}
    for stage in range(2):
        assert not any(id(p) in trained for p in fresh.model.zip(stage, "speech", "text").parameters())
        assert all(id(p) in trained for p in fresh.model.zip(stage, "text", "speech").parameters())


def test_gates_learn_faster_and_nothing_small_decays(prepared):
    module = module_for(prepared)
    groups = parameter_groups(module.model, lr=1e-3, gate_lr=10.0, weight_decay=0.1)
    gates = {id(p) for name, p in module.model.named_parameters() if name.endswith("gate")}
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) or parameter.ndim == 2
            assert (group.get("lr") == 1e-2) == (id(parameter) in gates)


def test_a_handful_of_utterances_is_learnt_by_heart(prepared):
    """Noise in, sentences out: only who listens can tell which."""
    cfg = config(
        *("name=overfit", "data.only=8", "data.train=24", "train.tokens=300", "evaluate.dev_utterances=1"),
        *("train.steps=400", "train.validate_every=400", "train.lr=0.01"),
    )
    resolved = resolve(cfg, prepared)
    resolved.run_dir.mkdir(parents=True)
    module, _ = run_module.fit(
        resolved,
        prepared,
        ZipperData.of(resolved, prepared),
        None,
        load_scorers(resolved, prepared.modalities),
    )
    rows = [prepared.splits["train"][i] for i in range(8)]
    assert total_errors(transcribe(module.model, prepared, module.statistics, rows, 8)).errors == 0
    swapped = rows[1:] + rows[:1]
    assert total_errors(transcribe(module.model, prepared, module.statistics, rows, 8, swapped)).rate > 0.5


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_loads_and_takes_a_step(file, dataset, utterances):
    cfg = load_config(file)
    if not cfg.train.tasks:
        small = TrainCodecConfig(filters=2, dimension=8, codebooks=2, codes=16, steps=2, batch=2, seconds=0.2)
        crops = Crops([u for u in utterances if u.split == "train"], small, 0)
        module = CodecModule(small, crops)
        wave, _ = next(iter(crops))
        loss = module.loss(
            module.model.decoder(module.model.encoder(wave[:, None]))[:, 0, : wave.shape[-1]], wave
        )
        loss.backward()
        assert torch.isfinite(loss)
        return
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for tower in cfg.model.towers.values():
        tower.init, tower.layers = None, tower.interval  # one stage, which is what a config decides
    cfg.train.compile = False  # a minute (test_engine.py)
    cfg.train.init = None  # whose model does not read this store
    cfg.data.tasks.clear()  # of corpora that this store does not hold
    del cfg.train.codebook_weights[dataset.modalities["speech"].codebooks :]
    cfg = resolve(cfg, dataset)
    module = ZipperModule.of(cfg, measure_statistics(dataset))
    data = ZipperData.of(cfg, dataset)
    batch = data.steps.batch(0, 0, data.codebooks)
    states = module.model(batch)
    optimiser = torch.optim.AdamW(parameter_groups(module.model, 1e-3, 10.0, 0.01))
    loss = sum(stream_loss(module.model.tower(n), states[n], s) for n, s in batch.streams.items())
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss)
    assert values["name"] == cfg.name


def test_throughput_is_that_of_all_processes(prepared, monkeypatch):
    """Between two loggings 30 tokens were trained in 2 s, in each of three processes."""
    module, seen = module_for(prepared, "log.every=1"), {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: seen.update({name: float(value)}))
    monkeypatch.setattr(time, "monotonic", iter([10.0, 12.0]).__next__)
    added = SimpleNamespace(reduce=lambda value, reduce_op: value * 3 if reduce_op == "sum" else value)
    trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=1, strategy=added)
    callback = Throughput()
    callback.on_train_start(trainer, module)
    module.units += 10
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert seen == {}
    module.units += 20
    callback.on_train_batch_end(trainer, module, None, None, 1)
    assert seen == {"train/units_per_second": 45.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_in_the_warm_up_and_a_cosine_ends_at_0(schedule):
    train = TrainConfig(lr=0.1, gate_lr=10.0, warmup=4, schedule=schedule, betas=[0.8, 0.9], weight_decay=0.3)
    optimiser, rates = optimiser_of(tiny_model(), train, 10, False)
    for step in range(11):
        fall = 0.5 * (1 + math.cos(math.pi * step / 10)) if schedule == "cosine" else 1.0
        expected = 0.1 * min(1, (step + 1) / 4) * fall
        for group in optimiser.param_groups:
            assert group["lr"] == pytest.approx(expected * (10 if group["name"] == "gates" else 1), abs=1e-12)
            assert tuple(group["betas"]) == (0.8, 0.9)
        optimiser.step()
        rates.step()


def test_only_matrices_decay():
    model = tiny_model(elsewhere=True)  # with a head of its own
    groups = parameter_groups(model, 1.0, 1.0, 0.3)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        embeds = name.endswith(("embedding.weight", ".head"))
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and not embeds), name


def test_dropout_is_that_of_the_seed_and_the_micro_batch(prepared):
    def drawn(seed: int, index: int) -> float:
        module_for(prepared, f"seed={seed}").on_train_batch_start(None, index)
        return float(torch.rand(()))

    assert drawn(0, 3) == drawn(0, 3)
    assert len({drawn(seed, index) for seed in (0, 1) for index in (0, 1, 2)}) == 6


def test_wer_on_dev_is_the_share_of_all_words_that_are_wrong(prepared, monkeypatch):
    """One word of one, none of nine: a tenth, not a half."""
    scores = [Score("a", errors, words, 1.0, "a", "b", "stop") for errors, words in ((1, 1), (0, 9))]
    answers = [([SimpleNamespace()], score) for score in scores]
    monkeypatch.setattr("zipper.training.callbacks.answer_rows", lambda *_: answers)
    monkeypatch.setattr("zipper.training.callbacks.map_over_ranks", lambda rows, run: run(rows))
    monkeypatch.setattr("zipper.training.callbacks.show_samples", lambda *_: None)
    module, logged = module_for(prepared), {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monitor = object.__new__(TaskMonitor)
    monitor.cfg, monitor.dataset, monitor.task = module.cfg, prepared, "asr"
    monitor.rows, monitor.scorer = [*prepared.splits["dev"]][:2], None
    monitor.on_validation_epoch_end(SimpleNamespace(global_step=3, is_global_zero=False, loggers=[]), module)
    assert logged == {"dev/asr_wer": pytest.approx(0.1)}


def test_gates_are_logged_as_they_scale(prepared):
    module, logged = module_for(prepared, "model.zip.gate_init=0.3", "log.every=1"), {}
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    GateMonitor().on_train_batch_end(SimpleNamespace(global_step=2, loggers=[logger]), module)
    assert len(logged) >= 4  # two of each zip
    assert max(logged.values()) == pytest.approx(math.tanh(0.3))


def test_towers_that_no_task_joins_are_no_model_to_export(prepared):
    with pytest.raises(ConfigError, match=r"export=u: train.tasks=\['speech', 'text'\] join none"):
        run_module.train(config("train.tasks={asr: 0, text: 1, speech: 1}", "export=u"), "x")


@pytest.mark.parametrize(
    "words",
    [
        ["model.modalities=[text]", "train.tasks={asr: 0, text: 1}"],
        ["train.tasks={asr: 0, text: 1, speech: 1}"],
    ],
)
def test_a_training_of_frozen_towers_alone_is_refused(prepared, words):
    frozen = [f"model.towers.{name}.frozen=true" for name in ("text", "speech")]
    with pytest.raises(ConfigError, match=r"Every tower of model.modalities=.* is frozen"):
        run_module.train(config(*words, *frozen), "x")
