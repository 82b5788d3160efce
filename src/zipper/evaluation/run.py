"""`zipper evaluate`: evaluates a trained run or an exported model on a split."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zipper.checkpoint_files import read_checkpoint
from zipper.clock import Clock
from zipper.codecs.load import load_codec
from zipper.commit import commit
from zipper.config import (
    CodecConfig,
    DataConfig,
    RunConfig,
    TrainConfig,
    expanded,
    flat,
    overridden_keys,
    to_dict,
    with_overrides,
)
from zipper.data.dataset import EncodedDataset
from zipper.data.prepare import prepare
from zipper.distributed import MACHINE, first_process, leave_group
from zipper.errors import ConfigError
from zipper.evaluation.journal import evaluation_identity, journal_name, open_journal, read_pieces
from zipper.evaluation.result import Origin, write_predictions
from zipper.evaluation.result_file import Result, read_result, write_result
from zipper.evaluation.tasks import evaluate_tasks, load_scorers, scorer_name, summary_lines
from zipper.generation.exported import WEIGHTS, check_units, load_exported, load_trained
from zipper.modalities.base import load_modalities
from zipper.modalities.scoring import Scorer
from zipper.models.building import TrainedModel
from zipper.run_folder import check_dataset, result_files

REQUESTED = ("evaluate", "decode", "asr_scorer", "name", "build", "result", "export", "seed")
PLACES = ("folder", "text_folder")  # settings of data; they may have moved
DEVICES = ("accelerator", "devices", "nodes")  # settings of train


def evaluate_run(
    cfg: RunConfig, command: str, folder: Path | None = None, overrides: Sequence[str] = ()
) -> None:
    """Evaluates a run and writes TASK-SPLIT.json, TASK-SPLIT.tsv and samples-SPLIT into its folder.

    A repeated evaluation writes TASK-SPLIT-2.json and so on. An interrupted one resumes. folder: run folder,
    if it is not that of cfg. overrides: which cfg has. Raises ConfigError if the checkpoint is missing, if
    the run was trained on another encoded dataset, or on an override of what belongs to its training.
    """
    folder = folder or cfg.run_dir
    checkpoint = folder / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} does not exist. Train the run first, or name another (name=...).")
    trained = load_trained(checkpoint)
    # Model and training are those of the checkpoint; decoding and scoring are those of the caller, and so is
    # a codec of the same codes.
    asked, known = flat(to_dict(cfg)), flat(to_dict(trained.config))
    free = {*(f"data.{key}" for key in PLACES), *(f"train.{key}" for key in DEVICES)}
    for key in sorted(overridden_keys(overrides) - free):
        if key.startswith(("data.", "model.", "train.")) and asked.get(key) != known.get(key):
            raise ConfigError(
                f"{key}={asked.get(key)}: the run was trained with {known.get(key)}, and is evaluated so. "
                "For other data, export it (zipper export) and evaluate the exported model."
            )
    requested = {key: getattr(cfg, key) for key in REQUESTED}
    requested["decode"] = {**trained.config.decode, **cfg.decode}
    machine = {key: getattr(cfg.train, key) for key in DEVICES}
    moved = {key: getattr(cfg.data, key) or getattr(trained.config.data, key) for key in PLACES}
    data = replace(trained.config.data, **moved)
    chosen, train = cfg.codec, replace(trained.config.train, **machine)
    cfg = replace(trained.config, **requested, data=data, train=train)
    if _same_codes(chosen, cfg.codec):
        cfg = replace(cfg, codec=chosen)
    elif given := sorted(key for key in overridden_keys(overrides) if key.startswith("codec.")):
        raise ConfigError(
            f"{given[0]}={asked.get(given[0])}: this codec gives other codes than that of the training, or "
            "another pattern of them. Leave it out, or name a codec of the same codes."
        )
    clock, modalities = Clock(), load_modalities(cfg, folder)  # its tokenizer
    scorers = load_scorers(cfg, modalities)
    dataset = prepare(cfg, clock, modalities)
    check_dataset(checkpoint, dataset, allow_other_audio=True)
    ended = folder / cfg.summary_file.name
    training = read_result(ended, utterances=False) if ended.exists() else Result()
    saved = read_checkpoint(checkpoint, whole=False)
    steps = training.get("steps", saved["global_step"])
    seconds = training.get("wall_seconds", saved.get("train_seconds", 0.0))
    if not training:
        print(f"{folder} is unfinished: {checkpoint.name} is of step {saved['global_step']}")
    origin = Origin(command, commit(), steps, seconds, trained.config.seed)
    _evaluate(cfg, trained, dataset, checkpoint, origin, scorers, clock, folder)


def _same_codes(a: CodecConfig, b: CodecConfig) -> bool:
    """Whether tokens made with one codec are those made with the other."""
    return a == b or (a.pattern == b.pattern and load_codec(a).fingerprint == load_codec(b).fingerprint)


def evaluate_exported(exported: Path, overrides: Sequence[str], command: str) -> None:
    """As `evaluate_run`, for an exported model. Results go to build/runs/NAME, by default the folder's name.

    overrides: change the settings of its training; machine settings start from the defaults. Those of
    another corpus start from the defaults, too, and its evaluated split is all that is needed of it; without
    splits of its own that is the whole corpus. The list that the model was trained on is no other one.
    Raises ConfigError if NAME is a training run, DataError if the encoded dataset has other units than the
    model.
    """
    trained, saved = load_exported(exported)
    data = trained.config.data
    given, corpus = overridden_keys(overrides), data.corpus
    if {"data.folder", "data.corpus"} & given == {"data.folder"} and corpus == "spoken":
        raise ConfigError(
            f"data.folder: the corpus of {exported} is spoken, which reads no folder. Name yours, too: "
            "data.corpus=manifest."
        )
    places = [one for one in overrides if one.startswith(("data.corpus=", "data.folder="))]
    default = replace(data.of_another_corpus, corpus=corpus)
    asked = with_overrides(replace(trained.config, data=default), places).data
    same = asked.corpus == corpus == "manifest" and _folder(asked) == _folder(data)
    other = not same and ("data.corpus" in given or ("data.folder" in given and corpus == "manifest"))
    data = default if other else data
    machine = {key: getattr(TrainConfig(), key) for key in MACHINE}
    cfg = replace(trained.config, data=data, train=replace(trained.config.train, **machine))
    cfg = with_overrides(cfg, [f"name={exported.resolve().name}", "result=null", "export=null", *overrides])
    if (pattern := cfg.codec.pattern) != (known := trained.config.codec.pattern):  # codes: check_units
        raise ConfigError(f"codec.pattern={pattern}, but {exported} was trained with {known}. Leave it out.")
    if cfg.model != trained.config.model:
        raise ConfigError(
            f"Overrides change the model of {exported}, but its weights are given. Leave them out."
        )
    for part in ("checkpoints", "result.json", "config.yaml"):
        if (cfg.run_dir / part).exists():
            raise ConfigError(
                f"{cfg.run_dir} holds {part} of a training run, so results of {exported} cannot go there. "
                "Choose another name (name=...)."
            )
    clock, modalities = Clock(), load_modalities(cfg, exported)
    scorers = load_scorers(cfg, modalities)
    dataset = prepare(cfg, clock, modalities, cfg.evaluate.split if other else None)
    check_units(exported, trained.config.model, trained.statistics, dataset.modalities)
    before = {trained.statistics.fingerprint, trained.statistics.fingerprint_without_audio}
    held_out = {*data.corpora} & {"manifest", "text", "librilight"} and not other
    if held_out and not before & {dataset.fingerprint, dataset.fingerprint_without_audio}:
        print(
            f"{dataset.folder} is not the encoded dataset that {exported} was trained on (data.folder, the "
            "codec, the tokenizer or versions of packages have changed): what is held out may be what it "
            "has learned"
        )
    steps, seconds = saved.get("steps", 0), 60 * saved.get("minutes", 0.0)
    origin = Origin(command, commit(), steps, seconds, trained.config.seed)
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    _evaluate(cfg, trained, dataset, exported / WEIGHTS, origin, scorers, clock, cfg.run_dir)


def _folder(data: DataConfig) -> Path:
    return expanded(data.folder or "").resolve()


def _evaluate(
    cfg: RunConfig, trained: TrainedModel, dataset: EncodedDataset, weights: Path, origin: Origin,
    scorers: Mapping[str, Scorer], clock: Clock, folder: Path,
) -> None:  # fmt: skip
    leave_group()  # `prepare` made it: rank 0 evaluates alone and must not wait for the others
    if not first_process():
        return
    trained.network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    work = evaluation_identity(weights, cfg, scorer_name(scorers))
    suffix = _suffix(folder, cfg.evaluate.split, work)
    with open_journal(folder / journal_name(suffix), work) as kept:
        with clock.stage("evaluate"):
            results = evaluate_tasks(trained, dataset, cfg, origin, scorers, [], kept, suffix, folder)
        copies = result_files(cfg, list(results))
        for task, result in results.items():
            result["stage_seconds"] = clock.rounded()
            write_predictions(result, folder / f"{task}{suffix}.tsv")
            write_result(result, folder / f"{task}{suffix}.json", *copies[task])
    print("\n".join(summary_lines(results, folder, suffix)))


def _suffix(folder: Path, split: str, work: dict[str, Any]) -> str:
    """First suffix that is free, or that belongs to this evaluation, unfinished."""
    first = f"-{split}"
    for suffix in itertools.chain([first], (f"{first}-{turn}" for turn in itertools.count(2))):
        begun, _ = read_pieces(folder / journal_name(suffix))
        if begun and begun[0] == json.loads(json.dumps(work)):
            return suffix
        if not begun and not any(folder.glob(f"[!.]*{suffix}.*")):
            return suffix
    raise AssertionError  # unreachable
