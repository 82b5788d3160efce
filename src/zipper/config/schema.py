"""Config dataclasses of data, codec, logging and a whole run, with checks of their values."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zipper.config.evaluation import AsrScorerConfig, EvaluateConfig, SamplingConfig
from zipper.config.fields import (
    NameLimits,
    Section,
    check_modalities,
    modalities_of,
    section,
    setting,
    suggestion,
    task_name,
)
from zipper.config.model import DEFAULT_MODALITIES, ModelConfig
from zipper.config.training import TrainCodecConfig, TrainConfig
from zipper.errors import ConfigError

NEEDED = "every split needs an utterance"
CORPORA = ("spoken", "librispeech", "libritts", "librilight", "text", "manifest", "pages", "pages-spoken")


@dataclass
class DataConfig(Section):
    KEY = "data"

    corpus: str = setting(
        "spoken",
        "spoken: the synthetic corpus, read by a small TTS voice; librispeech, libritts, librilight "
        "(speech alone), text (alone), manifest (.tsv or .jsonl of your own); pages: small images "
        "with sentences (pages-spoken: and recordings); several: librispeech+libritts",
    )
    folder: str | None = setting(None, "folder that holds LibriSpeech/, LibriTTS/; or the file of a manifest")
    splits: dict[str, list[str]] = setting(
        {},
        "subsets of LibriSpeech or LibriTTS for train, dev and test, or parts of them (train-clean-100/26); "
        "none: the whole corpus. Other corpora have none",
    )
    tasks: dict[str, list[str]] = setting(
        {}, "corpora of each task (paper: asr: [librispeech], tts: [libritts]); none: all that fit"
    )
    text_folder: str | None = setting(
        None, "folder of .txt files for the synthetic corpus; none: sentences of a grammar"
    )
    passages: tuple[int, int] | None = setting(
        None,
        "plain text (data.corpus=text, data.text_folder) in passages of so many words, cut anywhere as "
        "recordings are, such as [2, 45]; none: sentences",
        at_least=1,
    )
    train: int = setting(4000, "training utterances (spoken)", at_least=1, hint=NEEDED)
    dev: int = setting(
        300,
        "dev utterances (spoken; also held out from a corpus that has no splits)",
        at_least=1,
        hint=NEEDED,
    )
    test: int = setting(400, "test utterances (likewise)", at_least=1, hint=NEEDED)
    rates: tuple[float, float] = setting(
        (1.05, 1.3), "slowest and fastest speaking rate, sampled uniformly", at_least=0.5, at_most=2
    )
    seed: int = setting(1, "seed of sentences, speaking rates and pitches, and of held-out speakers")
    tokenizer: str | None = setting(
        None, "tokenizer.json of the text tower; none: train one on the training text"
    )
    subwords: int = setting(
        640, "maximum vocabulary of a new tokenizer, including special tokens", at_least=1
    )
    max_seconds: float = setting(
        30.0,
        "longer utterances are skipped, counted and listed (seconds), and an error if they are more than 1 % "
        "of the corpus: no filter of lengths",
        above=0,
    )
    speeds: list[float] = setting(
        [1.0],
        "speed perturbation: every training utterance is encoded at each of these, such as [0.9, 1, 1.1]",
        at_least=0.5,
        at_most=2,
    )
    only: int | None = setting(
        None, "number of training utterances to use; smaller subsets are nested in larger ones", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rates[0] > self.rates[1]:
            raise ConfigError(f"data.rates={list(self.rates)}: give the slowest and the fastest, in order.")
        if self.passages and self.passages[0] > self.passages[1]:
            raise ConfigError(f"data.passages={list(self.passages)}: give the fewest and the most, in order.")
        if not self.speeds or len(self.speeds) != len({*self.speeds}):
            raise ConfigError(f"data.speeds={self.speeds}: give at least one speed, and each once.")
        if unknown := [name for name in self.corpora if name not in CORPORA]:
            known, hint = ", ".join(CORPORA), suggestion(unknown[0], CORPORA)
            raise ConfigError(f"data.corpus={self.corpus}: {unknown[0]!r} is not one of {known}.{hint}")
        if len(self.corpora) != len({*self.corpora}):
            raise ConfigError(f"data.corpus={self.corpus} names a corpus twice.")
        beside = {*self.corpora} & {"librispeech", "libritts", "librilight", "text"}
        if "manifest" in self.corpora and beside:
            raise ConfigError(
                f"data.corpus={self.corpus}: data.folder would be the file of a manifest and the folder of "
                f"{min(beside)}. List its utterances in the manifest, too."
            )
        if unknown := sorted({*self.splits} - {"train", "dev", "test"}):
            raise ConfigError(f"data.splits.{unknown[0]}: a split is train, dev or test.")
        self.tasks = {task_name(task): names for task, names in self.tasks.items()}
        if strange := [name for names in self.tasks.values() for name in names if name not in self.corpora]:
            raise ConfigError(
                f"data.tasks: {strange[0]!r} is not in data.corpus={self.corpus}. Name one of its corpora."
            )
        if self.corpora == ["spoken"] and (self.only or 0) > self.train:
            raise ConfigError(f"data.only={self.only} must lie between 1 and data.train={self.train}.")

    @property
    def of_another_corpus(self) -> "DataConfig":
        """Default settings with this tokenizer."""
        return DataConfig(tokenizer=self.tokenizer, subwords=self.subwords)

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora."""
        return self.corpus.split("+")


@dataclass
class CodecConfig(Section):
    KEY = "codec"

    name: Literal["embedded", "encodec_24khz", "mimi"] = setting(
        "embedded",
        "embedded: zipper-codec, the small EnCodec in assets/; encodec_24khz: the official one; or mimi",
    )
    weights: str | None = setting(
        None, "folder (embedded, mimi) or file (encodec_24khz); none: assets/codec, or download to the cache"
    )
    bandwidth_kbps: float | None = setting(
        None, "encodec_24khz: 1.5, 3, 6, 12 or 24; mimi: 0.1375 per codebook; embedded: none (see codebooks)"
    )
    codebooks: int | None = setting(None, "codebooks to use of codec.name=embedded; none: all", at_least=1)
    semantic: str | None = setting(
        None,
        "encodec_24khz: folder of a zipper-codec with semantic units (train_codec.semantic), which become "
        "the first codebook; none: EnCodec's codebooks alone",
    )
    pattern: Literal["delay", "parallel"] = setting(
        "delay", "delay: codebook q is shifted by q timesteps; parallel: all codebooks in one timestep"
    )
    batch_seconds: float = setting(
        8.0, "seconds of audio in a batch of encoding; larger batches are slower on a CPU", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebooks is not None and self.name != "embedded":
            raise ConfigError(
                f"codec.codebooks={self.codebooks} is for codec.name=embedded; the codebooks of {self.name} "
                "follow from codec.bandwidth_kbps. Leave it out."
            )
        if self.semantic is not None and self.name != "encodec_24khz":
            raise ConfigError(
                f"codec.semantic={self.semantic} is for codec.name=encodec_24khz; the first codebook of "
                f"{self.name} is semantic by its training, or not at all. Leave it out."
            )
        if self.name != "embedded" and self.bandwidth_kbps is None:
            rates = {
                "encodec_24khz": "choose 1.5, 3, 6, 12 or 24 (2 to 32 codebooks)",
                "mimi": "0.1375 kbps per codebook, 1.1 for 8, 4.4 for all 32",
            }
            raise ConfigError(f"codec.bandwidth_kbps is not set: {rates[self.name]}.")


@dataclass
class LogConfig(Section):
    KEY = "log"

    wandb: Literal["offline", "online", "disabled"] = setting("offline", "online needs a key (wandb login)")
    project: str = setting("zipper", "W&B project", name=NameLimits("/\\#?%:", 128))  # W&B's limits
    group: str | None = setting(
        None, "W&B group; the runs of a sweep have one for each point", name=NameLimits("/\\#?%:", 128)
    )
    every: int = setting(20, "steps between logged metrics", at_least=1)


@dataclass
class RunConfig(Section):
    name: str = setting(
        "run", "name of the run, and of its folder in build/runs", name=NameLimits("/\\", 200)
    )
    seed: int = setting(0, "seed of weights, dropout and data order", at_least=0, at_most=2**32 - 1)
    build: str = setting("build", "folder of corpora, encoded datasets and runs")
    result: str | None = setting(None, "file for a copy of the result")
    export: str | None = setting(None, "folder to export the pre-trained tower or the model to")
    export_bits: int = setting(
        16, "bits of a weight of the export (or of train_codec.out): 16, 8, or 4", at_least=4, at_most=16
    )
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: resume an unfinished run of the same config; never: raise an error"
    )
    data: DataConfig = section(DataConfig)
    codec: CodecConfig = section(CodecConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    train_codec: TrainCodecConfig = section(TrainCodecConfig)
    decode: dict[str, SamplingConfig] = field(default_factory=dict)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    asr_scorer: AsrScorerConfig = section(AsrScorerConfig)
    log: LogConfig = section(LogConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.export_bits not in (16, 8, 4):
            raise ConfigError(f"export_bits={self.export_bits}: give 16, 8 or 4.")
        if self.train.quantise and self.export_bits == 16:
            raise ConfigError(
                "train.quantise=true with export_bits=16: half precision needs no training of its own. Give "
                "export_bits=4 or 8, or leave quantise out."
            )
        train = self.train
        layerwise = {
            "compile": train.compile,
            "activation_checkpointing": train.activation_checkpointing,
            "strategy": train.strategy,
        }
        given = [key for key, value in layerwise.items() if value in (True, "fsdp2")]
        if self.model.kind == "mixture" and given:
            raise ConfigError(
                f"model.kind=mixture with train.{given[0]}={layerwise[given[0]]}, which works on whole "
                "layers, while a mixture runs them in parts. Leave it out."
            )
        for name in self.model.modalities if self.train.init is None else ():  # which brings its decoding
            self.decode.setdefault(name, SamplingConfig())
        for name, how in self.decode.items():
            how.check(name)
            self._check_candidates(name, how)
        greedy = self.decode and all(how.temperature == 0 for how in self.decode.values())
        if self.evaluate.samplings > 1 and greedy:
            raise ConfigError(
                f"evaluate.samplings={self.evaluate.samplings}, but every decode.NAME.temperature=0 is "
                "greedy: all samples would be equal. Give a temperature."
            )
        if self.train.init is None or self.model != ModelConfig():  # otherwise that brings the modalities
            towers = [*self.model.towers, *DEFAULT_MODALITIES]
            check_modalities("decode", self.decode, towers)
            for key, tasks in (("train.tasks", self.train.tasks), ("data.tasks", self.data.tasks)):
                for task in tasks:
                    check_modalities(f"{key}.{task}", modalities_of(task), towers)
        if twice := [task for task in self.train.tasks if len({*modalities_of(task)}) < task.count(">") + 1]:
            raise ConfigError(
                f"train.tasks.{twice[0]} names a modality twice. Train its pairs, such as speech>text and "
                "text>speech, and evaluate it with evaluate.chains."
            )
        if unknown := [task for task in self.evaluate.tasks if task not in self.train.tasks]:
            raise ConfigError(
                f"evaluate.tasks={self.evaluate.tasks}, but {unknown} is not trained: "
                f"train.tasks={self.train.tasks}. Give it a share there, or leave it out."
            )
        self._check_chains()

    def _check_candidates(self, name: str, how: SamplingConfig) -> None:
        """The best candidate is the one from which the model most likely finds the prompt again."""
        orders = [modalities_of(task) for task in self.train.tasks]
        sources = {order[at - 1] for order in orders for at in range(1, len(order)) if order[at] == name}
        back = {b for order in orders for a, b in itertools.combinations(order, 2) if a == name}
        if how.candidates > 1 and (lacking := sources - back) and not (self.model.init or self.train.init):
            raise ConfigError(
                f"decode.{name}.candidates={how.candidates} chooses the sample from which the model most "
                f"likely finds the {min(lacking)} again, but {name}>{min(lacking)} is not in train.tasks="
                f"{self.train.tasks}. Give it a share there, or leave candidates out."
            )

    def _check_chains(self) -> None:
        hops = [modalities_of(task) for task in self.train.tasks]
        for chain in self.evaluate.chains:
            order = tuple(chain.split(">"))
            known = self.model.init or {*itertools.pairwise(order)} <= {*hops}  # init has tasks of its own
            if len(order) < 3 or not known:
                raise ConfigError(
                    f"evaluate.chains: {chain!r} must have three or more modalities, and this run must train "
                    f"each of its tasks (train.tasks={self.train.tasks}). Write it as speech>text>speech, or "
                    "give its tasks a share."
                )

    @property
    def evaluated_tasks(self) -> list[str]:
        """Trained tasks from one modality to another, as far as `evaluate.tasks` asks for them."""
        trained = [task for task in self.train.tasks if len(modalities_of(task)) > 1]
        return [task for task in trained if not self.evaluate.tasks or task in self.evaluate.tasks]

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.build) / "runs" / self.name

    @property
    def summary_file(self) -> Path:
        """Summary of this run, which is written last and marks it as finished."""
        return self.run_dir / "result.json"
