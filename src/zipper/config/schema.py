"""Every setting, its meaning and its default. Mistakes that can be seen here are refused here."""

import difflib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zipper.config.evaluation import DecodeConfig, EvaluateConfig, JudgeConfig, SamplingConfig
from zipper.config.fields import TASKS, check_name, check_positive, check_range, section, setting
from zipper.config.model import ModelConfig, TowerConfig, ZipConfig
from zipper.config.training import TasksConfig, TrainCodecConfig, TrainConfig
from zipper.errors import ConfigError

__all__ = [
    "TASKS",
    "CodecConfig",
    "DataConfig",
    "DecodeConfig",
    "EvaluateConfig",
    "JudgeConfig",
    "LogConfig",
    "ModelConfig",
    "RunConfig",
    "SamplingConfig",
    "TasksConfig",
    "TowerConfig",
    "TrainCodecConfig",
    "TrainConfig",
    "ZipConfig",
]


CORPORA = ("spoken", "librispeech", "libritts", "librilight", "text", "manifest")


@dataclass
class DataConfig:
    corpus: str = setting(
        "spoken",
        "spoken: the embedded corpus, read aloud by a small neural voice; librispeech, libritts, librilight "
        "(speech "
        "alone), text (alone), manifest (.tsv or .jsonl of your own); several: librispeech+libritts",
    )
    folder: str | None = setting(
        None, "where published corpora lie (the folder of LibriSpeech/, LibriTTS/); the file of a manifest"
    )
    splits: dict[str, list[str]] = setting(
        {}, "subsets of train, dev and test, or parts of them (train-clean-100/26); none: all of the corpus"
    )
    tasks: dict[str, list[str]] = setting(
        {}, "corpora that a task takes (paper: asr: [librispeech], tts: [libritts]); none: all that can"
    )
    text_folder: str | None = setting(
        None, "folder of .txt files to read aloud; none: our grammar's sentences"
    )
    train: int = setting(4000, "utterances to train on (spoken)")
    dev: int = setting(
        300, "utterances to choose by (spoken; of others, that are held out if they have no splits)"
    )
    test: int = setting(400, "utterances to report on (likewise)")
    rates: tuple[float, float] = setting((1.05, 1.3), "slowest and fastest speaking rate, drawn evenly")
    seed: int = setting(1, "of the sentences, rates and pitches")
    tokenizer: str | None = setting(
        None, "tokenizer.json of the text tower; none: trained on the training text"
    )
    subwords: int = setting(640, "most subwords of a tokenizer trained here, specials included")
    max_seconds: float = setting(30.0, "longer utterances are skipped, counted and listed")
    only: int | None = setting(
        None, "train on so many utterances only; a smaller share is nested in a larger one"
    )

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test) < 1:
            raise ConfigError(
                f"data.train={self.train}, data.dev={self.dev}, data.test={self.test}: "
                "every split needs an utterance."
            )
        if not 0.5 <= self.rates[0] <= self.rates[1] <= 2.0:
            raise ConfigError(
                f"data.rates={list(self.rates)}: give slowest and fastest within 0.5 and 2.0, in order."
            )
        check_positive(self, "data", "subwords")
        if not self.max_seconds > 0:
            raise ConfigError(f"data.max_seconds={self.max_seconds} would skip every utterance.")
        if unknown := [name for name in self.corpora if name not in CORPORA]:
            close = difflib.get_close_matches(unknown[0], CORPORA, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"data.corpus={self.corpus}: {unknown[0]!r} is none of {', '.join(CORPORA)}.{hint}"
            )
        if len(self.corpora) != len({*self.corpora}):
            raise ConfigError(f"data.corpus={self.corpus} names one twice.")
        if unknown := sorted({*self.splits} - {"train", "dev", "test"}):
            raise ConfigError(f"data.splits.{unknown[0]}: a split is train, dev or test.")
        for task, names in self.tasks.items():
            if task not in TASKS or (strange := [name for name in names if name not in self.corpora]):
                what = (
                    f"{task!r} is none of {', '.join(TASKS)}"
                    if task not in TASKS
                    else f"{strange[0]!r} is not in it. Name one that is"
                )
                raise ConfigError(f"data.tasks with data.corpus={self.corpus}: {what}.")
        if self.only is not None and not 1 <= self.only <= (
            self.train if self.corpora == ["spoken"] else self.only
        ):
            raise ConfigError(f"data.only={self.only} must lie within 1 and data.train={self.train}.")

    @property
    def corpora(self) -> list[str]:
        """Their names."""
        return self.corpus.split("+")


@dataclass
class CodecConfig:
    name: Literal["embedded", "encodec_24khz", "mimi"] = setting(
        "embedded",
        "embedded: the small EnCodec in assets/; the official one; or Mimi, whose first codebook is semantic",
    )
    weights: str | None = setting(
        None, "folder (embedded, mimi) or file (encodec_24khz); none: assets/codec, or cache and download"
    )
    bandwidth_kbps: float | None = setting(
        None,
        "1.5, 3, 6, 12 or 24 for encodec_24khz; 0.1375 a codebook of mimi; none: all codebooks of embedded",
    )
    codebooks: int | None = setting(None, "the first so many of the embedded codec; none: all")
    pattern: Literal["delay", "parallel"] = setting(
        "delay", "delay: codebook q of a frame stands q columns late; parallel: all of them in one column"
    )
    batch_seconds: float = setting(
        8.0, "seconds of audio encoded at a time; more is slower on a CPU, whose memory it asks for anew"
    )

    def __post_init__(self) -> None:
        if self.codebooks is not None and self.name != "embedded":
            raise ConfigError(
                f"codec.codebooks={self.codebooks} is of the embedded codec; {self.name} has so many as "
                "codec.bandwidth_kbps gives. Leave it out."
            )
        if not self.batch_seconds > 0 or (self.codebooks is not None and self.codebooks < 1):
            raise ConfigError(
                f"codec.batch_seconds={self.batch_seconds} must be more than 0, "
                f"codec.codebooks={self.codebooks} at least 1, or none."
            )
        if self.name == "encodec_24khz" and self.bandwidth_kbps is None:
            raise ConfigError(
                "codec.bandwidth_kbps is not set: choose 1.5, 3, 6, 12 or 24 (2 to 32 codebooks)."
            )
        if self.name == "mimi" and self.bandwidth_kbps is None:
            raise ConfigError(
                "codec.bandwidth_kbps is not set: Mimi has 0.1375 a codebook, 1.1 for 8 of them, 4.4 for "
                "all 32."
            )


@dataclass
class LogConfig:
    wandb: Literal["offline", "online", "disabled"] = setting("offline", "online needs a key (wandb login)")
    project: str = setting("zipper", "W&B project")
    every: int = setting(20, "steps between logged metrics")

    def __post_init__(self) -> None:
        check_positive(self, "log", "every")
        check_name(
            "log.project", self.project, "/\\#?%:", 128
        )  # as W&B has it, which asks once the run has begun


@dataclass
class RunConfig:
    name: str = setting("run", "of the run, and of its folder under build/runs")
    seed: int = setting(0, "of weights, dropout and data order")
    build: str = setting("build", "folder of corpora, stores and runs")
    result: str | None = setting(None, "file the result is copied to, beside the run folder's own")
    export: str | None = setting(None, "folder that a pre-trained tower, or the zipped model, is written to")
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: an unfinished run of the same config goes on; never: its folder is refused"
    )
    data: DataConfig = section(DataConfig)
    codec: CodecConfig = section(CodecConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    train_codec: TrainCodecConfig = section(TrainCodecConfig)
    decode: DecodeConfig = section(DecodeConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    judge: JudgeConfig = section(JudgeConfig)
    log: LogConfig = section(LogConfig)

    def __post_init__(self) -> None:
        check_range(self, "", 0, 2**32 - 1, "seed")
        check_name("name", self.name, "/\\", 200)  # a folder, and with more behind it a file
        if self.evaluate.samplings > 1 and self.decode.speech.temperature == 0:
            raise ConfigError(
                f"evaluate.samplings={self.evaluate.samplings}, but decode.speech.temperature=0 is greedy: "
                "all would be alike. Give a temperature."
            )

        self._check_chains()

    def _check_chains(self) -> None:
        hops = [TASKS[task] for task in self.train.tasks.shares()]
        for chain in self.evaluate.chains:
            order = tuple(chain.split(">"))
            if len(order) < 3 or not {*itertools.pairwise(order)} <= {*hops}:
                raise ConfigError(
                    f"evaluate.chains: {chain!r} is no chain of three or more modalities, each step of which "
                    f"this run learns (train.tasks={self.train.tasks.shares()}). Write it as "
                    "speech>text>speech, or give its tasks a share."
                )

    def evaluates(self, task: str) -> bool:
        """Whether recognition (asr) or speaking (tts) is watched in training, and evaluated."""
        learnt = task in self.train.tasks.shares()
        return learnt and (not self.evaluate.tasks or task in self.evaluate.tasks)

    @property
    def run_dir(self) -> Path:
        """Where this run keeps everything it makes."""
        return Path(self.build) / "runs" / self.name
