"""A tiny store of noise and grammar sentences, and tiny towers: every test runs in seconds, without network
or GPU.
"""

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image as Picture

import broken_runs
import zipper
from zipper.codecs.codec import Codec, build_zipper_codec
from zipper.commit import commit
from zipper.config import ModelConfig, RunConfig, TowerConfig, TrainCodecConfig, ZipConfig, load_config
from zipper.corpora.grammar import sentences
from zipper.corpora.utterance import Utterance
from zipper.data.batches import Batch, collate
from zipper.data.dataset import EncodedDataset
from zipper.data.documents import Document, Segment, document
from zipper.data.encode import prepare_dataset
from zipper.data.statistics import measure_statistics
from zipper.evaluation import figures
from zipper.evaluation import run as evaluation_module
from zipper.evaluation.result import versions
from zipper.evaluation.result_file import write_result
from zipper.evaluation.task import answer_rows
from zipper.modalities import speech as speech_module
from zipper.modalities.asr_scorer import AsrScorer
from zipper.modalities.base import Modality
from zipper.modalities.delay import Pattern
from zipper.modalities.layout import TokenLayout
from zipper.modalities.scoring import Score
from zipper.modalities.speech import Speech
from zipper.modalities.speech_scorer import SpeechScorer
from zipper.modalities.text import Text
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.pretrained import save_tower
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.models.zipper import ZipperModel
from zipper.training import run as run_module
from zipper.training.module import ZipperModule

# The same examples every time, so that CI fails for a change alone; --hypothesis-profile=search draws others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(1)  # tiny tensors gain nothing from threads, and lose much where cores are shared


@pytest.fixture(autouse=True)
def unrendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a run are made, but rendered as one pixel: that takes a third of a tiny training."""

    def save(figure: Figure, file: Path, dpi: int = 120) -> Path:
        Picture.new("RGB", (1, 1)).save(file)
        return file

    if not request.node.get_closest_marker("rendered"):
        monkeypatch.setattr(figures, "_save", save)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--result", type=Path, help="file for how many cases of bad input are clear errors")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """`make bad-input`: counts by command, for RESULTS.md."""
    if file := config.getoption("--result"):
        found = {
            how: [r.nodeid.partition("[")[2] for r in terminalreporter.getreports(how) if "[" in r.nodeid]
            for how in ("passed", "failed")
        }
        cases = [case for several in found.values() for case in several]
        result = {
            "task": "bad-input", "cases": len(cases), "clear": len(found["passed"]),
            "by_command": dict(Counter(case.split()[0] for case in cases)), "commit": commit(),
            "command": "make bad-input", "versions": versions(),
        }  # fmt: skip
        write_result(result, file)


COUNTS = {"train": 24, "dev": 6, "test": 6}
RATES = {"text": 4.0, "speech": 25.0, "music": 10.0}


@pytest.fixture(scope="session")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Noise of 0.3 to 1 s, 16 kHz, with sentences of the grammar."""
    folder = tmp_path_factory.mktemp("corpus")
    texts, draw, out = sentences(seed=3), np.random.default_rng(0), []
    for split, count in COUNTS.items():
        (folder / split).mkdir()
        for i in range(count):
            file = folder / split / f"{split}-{i}.flac"
            sf.write(file, draw.normal(0, 0.1, int(draw.integers(4800, 16000))), 16000)
            out.append(Utterance(f"{split}-{i}", str(file), next(texts), "noise", split))
    return out


@pytest.fixture(scope="session")
def codec() -> Codec:
    """An untrained EnCodec, 3 codebooks of 16 codes, at 25 frames a second."""
    torch.manual_seed(0)
    model = build_zipper_codec(TrainCodecConfig(filters=2, dimension=8, codebooks=3, codes=16))
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_(0, 0.05)
    return Codec(model, 3, 10.0, "embedded")


@pytest.fixture(scope="session")
def subwords(utterances: list[Utterance]) -> Tokenizer:
    return Tokenizer.train([u.text for u in utterances if u.split == "train"], 64)


@pytest.fixture(scope="session")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, utterances: list[Utterance], codec: Codec, subwords: Tokenizer
) -> EncodedDataset:
    return prepare_dataset(tmp_path_factory.mktemp("stores"), utterances, units(codec, subwords), 30.0)


def units(codec: Codec, subwords: Tokenizer, pattern: Pattern = "delay") -> dict[str, Modality]:
    """Text and speech."""
    return {"text": Text(subwords), "speech": Speech(codec, pattern, 5.0)}


def tiny_model(
    names: tuple[str, ...] = ("text", "speech"),
    layers: int = 5,
    gate: float = 0.7,
    seed: int = 0,
    switch: bool = False,
    elsewhere: bool = False,
    lora: int = 0,
    **zip_settings,
) -> ZipperModel:
    """Towers of different widths, zips with open gates, float64, eval; weights large enough to matter.

    elsewhere: the text tower has all that pre-trained models of the Llama family may bring."""
    torch.manual_seed(seed)
    shapes = {
        "text": TowerConfig(layers, 16, heads=2, kv_heads=1, hidden=24, vocabulary=11, codebooks=1),
        "speech": TowerConfig(layers, 24, heads=4, kv_heads=2, hidden=32, vocabulary=9, codebooks=3),
        "music": TowerConfig(layers - 1, 8, heads=2, kv_heads=2, hidden=8, vocabulary=7, codebooks=2),
    }
    shapes["speech"].specials, shapes["music"].specials = [6, 7, 8], [4, 5, 6]
    if elsewhere:
        more = {"head_size": 6, "qkv_bias": True, "qk_norm": True, "tied": False}
        shapes["text"] = replace(shapes["text"], **more, rope_scaling=[8.0, 1.0, 4.0, 16.0])
    shapes["text"] = replace(shapes["text"], lora=lora)
    zips = ZipConfig(heads=2, gate_init=gate, **zip_settings)
    cfg = ModelConfig(
        modalities=list(names),
        towers={name: shapes[name] for name in names},
        zip=zips,
        next_modality_head=switch,
    )
    model = ZipperModel(cfg, RATES).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
        if name.endswith(".gate"):
            torch.nn.init.constant_(parameter, 0.5)
    return model


def interleaving(model: ZipperModel, draw: random.Random, parts: int, multimodal: bool = True) -> Document:
    """A document of random segments in random order."""
    made = []
    for _ in range(parts):
        name = draw.choice(model.names)
        cfg, count = model.cfg.towers[name], draw.randint(2, 5)
        tokens = torch.randint(cfg.vocabulary, (count, cfg.codebooks), generator=_generator(draw))
        made.append(Segment(name, tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0))
    return Document(f"doc-{draw.random()}", made, multimodal)


def as_batch(model: ZipperModel, documents: list[Document]) -> Batch:
    return collate(documents, model.cfg.codebooks)


def _generator(draw: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.randrange(2**31))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = [
    "model.towers.text={layers: 2, width: 16, heads: 2, kv_heads: 2, hidden: 32, interval: 1}",
    "model.towers.speech={layers: 2, width: 24, heads: 2, kv_heads: 2, hidden: 32, interval: 1}",
    "model.zip.heads=2",
    "train={tokens: 200, steps: 6, validate_every: 3, warmup: 2, tasks: {asr: 1}}",
    "train.accelerator=cpu",
    "log={wandb: disabled, every: 1}",
]


def config(*words: str) -> RunConfig:
    return load_config(None, [*WORDS, *words])


@pytest.fixture
def prepared(dataset, monkeypatch, in_tmp):
    """`train` finds the tiny store, and works in an empty folder."""
    for module in (run_module, evaluation_module):
        monkeypatch.setattr(module, "prepare", lambda cfg, clock, modalities, split=None: dataset)
        monkeypatch.setattr(module, "load_modalities", lambda cfg, folder=None: dataset.modalities)
    return dataset


def module_for(dataset: EncodedDataset, *words: str) -> ZipperModule:
    torch.manual_seed(0)
    return ZipperModule.of(resolve(config(*words), dataset), measure_statistics(dataset))


def training_documents(dataset: EncodedDataset, count: int, *tasks: str) -> list[Document]:
    """The first rows of the training split, each by every task."""
    return [document(dataset, dataset.splits["train"][i], task, 0.0) for i in range(count) for task in tasks]


JOINT = ["name=joint", "model.next_modality_head=true", "train.tasks={asr: 1, tts: 1.26}", "train.tokens=300"]


def transcribe(model, dataset, statistics, rows, batch=8, prompts=None) -> list[Score]:
    """Scores of the transcripts of rows."""
    scorer, order = dataset.modalities["text"].scorer(RunConfig()), ("speech", "text")
    answers = answer_rows(model, dataset, statistics, scorer, rows, order, batch, prompts=prompts)
    return [score for _, score in answers]


def perfect(dataset, codec) -> AsrScorer:
    """Hears what was said in every recording and round trip of the test split, by their samples; in all else,
    nothing."""
    known = {}
    for split in ("train", "dev", "test"):
        for row in dataset.splits[split]:
            known[_key(codec.decode(dataset.modalities["speech"].content(row)))] = row["text"]
            known[_key(torch.from_numpy(sf.read(row["audio"], dtype="float32")[0]))] = row["text"]
    return AsrScorer(lambda wave: known.get(_key(wave), ""), str, "perfect", "none")


def _key(wave: torch.Tensor) -> str:
    return f"{len(wave)} {float(wave.double().abs().sum()):.6f}"


@pytest.fixture
def listening(prepared, codec, monkeypatch):
    """`train` finds the tiny codec and a perfect ASR scorer."""
    monkeypatch.setattr(speech_module, "load_codec", lambda cfg: codec)
    scorer = perfect(prepared, codec)
    monkeypatch.setattr("zipper.modalities.asr_scorer.load_asr_scorer", lambda cfg, semantic=None: scorer)
    return SpeechScorer(Speech(codec), scorer, "build")


@pytest.fixture
def trained(listening, prepared):
    """A run folder as `generate` needs it, untrained."""
    cfg, module = config(*JOINT), module_for(prepared, *JOINT)
    folder = cfg.run_dir / "checkpoints"
    folder.mkdir(parents=True)
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**state, "pytorch-lightning_version": "2.6.0"}, folder / "best.ckpt")
    (cfg.run_dir / "config.yaml").write_text("name: joint\n", encoding="utf-8")
    prepared.modalities["text"].save(cfg.run_dir)
    return cfg


@pytest.fixture
def unbroken(prepared, tmp_path_factory):
    """The run that all others are compared with, trained once."""
    kept = tmp_path_factory.getbasetemp() / "unbroken"
    if not kept.exists():
        run_module.train(config(*broken_runs.LONG, "name=unbroken"), "x")
        shutil.copytree(broken_runs.RUNS / "unbroken", kept)
    else:
        shutil.copytree(kept, broken_runs.RUNS / "unbroken")


@pytest.fixture
def towers(in_tmp, codec, monkeypatch):
    """A language model as the hub has them, a speech tower as `pretrain` exports it, and a manifest."""
    from language_models import saved  # transformers take seconds

    monkeypatch.setattr(speech_module, "load_codec", lambda cfg: codec)
    torch.manual_seed(0)
    rows = TokenLayout.after(codec.codes, 3).vocabulary
    shape = TowerConfig(layers=3, width=24, heads=2, kv_heads=2, hidden=32, vocabulary=rows, codebooks=3)
    save_tower(in_tmp / "speech", Tower(shape), {"reads": codec.fingerprint, "trained_on": None})
    return {"text": saved(in_tmp / "text", vocab_size=320), "speech": in_tmp / "speech"}


@pytest.fixture
def manifest(in_tmp, utterances):
    lines = [f"{u.id}\t{u.audio}\t{u.text}\t{u.speaker}" for u in utterances]
    file = in_tmp / "all.tsv"
    file.write_text("\n".join(["id\taudio\ttext\tspeaker", *lines]) + "\n", encoding="utf-8")
    return file


def joined(towers) -> zipper.Zipper:
    return zipper.Zipper.from_towers(
        **towers, interval={"text": 1, "speech": 1}, frozen=["text"], overrides=["model.zip.heads=2"]
    )


def data_of(manifest: Path, model: zipper.Zipper, tasks: dict[str, float], *words: str) -> zipper.ZipperData:
    settings = [f"data.folder={manifest}", "data.dev=4", "data.test=4", "train.tokens=200", *words]
    return zipper.ZipperData("manifest", model, tasks=tasks, overrides=settings)


@pytest.fixture
def model_hub(tmp_path, monkeypatch) -> Path:
    """The folder that stands in for the hub: what is pushed lies there, and is fetched from there."""
    there = tmp_path / "hub"

    def create(self, name, private, exist_ok):
        (there / name).mkdir(parents=True, exist_ok=exist_ok)
        (there / name).with_name("private" if private else "public").touch()

    def upload(self, repo_id, folder_path, allow_patterns, delete_patterns, commit_message):
        for file in (file for pattern in delete_patterns for file in (there / repo_id).glob(pattern)):
            file.unlink()
        for file in (file for pattern in allow_patterns for file in Path(folder_path).glob(pattern)):
            shutil.copy(file, there / repo_id)

    def upload_one(self, path_or_fileobj, path_in_repo, repo_id, commit_message):
        (there / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_file", upload_one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: str(there / name))
    return there
