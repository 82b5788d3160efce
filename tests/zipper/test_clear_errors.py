"""Bad input at every public entry: an error of its type, that names the thing, its value, and what to do
about it, before work starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml

from reproduce import ROOT
from zipper.cli import run
from zipper.corpora import spoken
from zipper.errors import ConfigError, DataError

ASR = str(ROOT / "configs" / "asr.yaml")
CODEC = str(ROOT / "configs" / "codec.yaml")
ZIPPED = str(ROOT / "assets" / "zipped")
TRAIN, PREPARE, EVALUATE = ["train", ASR], ["prepare", ASR], ["evaluate", ASR]
LIST = [*PREPARE, "data.corpus=manifest", "data.folder=list.tsv"]
SAY = ["generate", ZIPPED, "--text", "so it is"]


def noise(seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * 16000)).astype(np.float32)


def listing(folder: Path, audio: str = "good.flac", text: str = "so it is", **more: str) -> None:
    """A manifest of one utterance a split."""
    lines = ["\t".join(["audio", "text", "id", "split"])]
    for split in ("train", "dev", "test"):
        lines.append("\t".join([audio, text, more.get("id", split), more.get("split", split)]))
    (folder / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def copied(name: str, folder: Path) -> Path:
    if name == "text-tower":  # its weights are those of the exported model
        copied("zipped", folder)
    return Path(shutil.copytree(ROOT / "assets" / name, folder / name))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def result(file: Path, **values: object) -> None:
    one = {"id": "test-1", "errors": 1, "words": 4, "reference": "so it is then"}
    whole = {"name": file.stem, "task": "asr", "split": "test", "per_utterance": [one], "utterances": 1}
    file.write_text(json.dumps({**whole, **values}), encoding="utf-8")


def a_run(folder: Path, finished: bool = False, **config: object) -> Path:
    run_dir = folder / "build" / "runs" / "asr"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"name": "asr", **config}), encoding="utf-8")
    if finished:
        (run_dir / "result.json").write_text("{}", encoding="utf-8")
    return run_dir


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


def naming_code(file: Path) -> None:
    """A checkpoint that makes Lightning before 2.6.6 import and call what it names."""
    torch.save(
        {"state_dict": {}, "hyper_parameters": {"cfg": {}, "facts": {}, "_instantiator": "pathlib.Path"}},
        file,
    )


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda f: (f / name).write_bytes(content.encode() if isinstance(content, str) else content)


def recording(samples: np.ndarray | None = None, text: str = "so it is", name: str = "good.flac"):
    """A manifest, and its one recording."""

    def make(f: Path) -> None:
        listing(f, name, text)
        if samples is not None:
            sf.write(f / name, samples, 16000, subtype="FLOAT" if name.endswith("wav") else None)

    return make


def damaged(asset: str, file: str, content: str | None = None) -> Callable[[Path], object]:
    """A shipped folder with one file cut off, or replaced."""
    return lambda f: (
        cut(copied(asset, f) / file)
        if content is None
        else (copied(asset, f) / file).write_text(content, encoding="utf-8")
    )


C, D = ConfigError, DataError
# What is asked; what is there before; the error's type; words that it must have: the thing, its value, the
# fix.
CASES = [
    # settings
    ([*TRAIN, "trian.steps=3"], None, C, "'trian'", "RunConfig", "Did you mean: 'train'"),
    ([*TRAIN, "train.steps=many"], None, C, "'many'", "to Integer", "train.steps=many"),
    ([*TRAIN, "train.steps=0"], None, C, "train.steps=0", "at least 1"),
    ([*TRAIN, "train.steps=1234"], None, C, "train.steps=1234", "validate_every=500", "Use train.steps=1000"),
    ([*TRAIN, "train.lr=0"], None, C, "train.lr=0.0", "more than 0"),
    ([*TRAIN, "train.lr=nan"], None, C, "train.lr=nan", "not a finite number", "Give one"),
    ([*TRAIN, "train.betas=[0.9,1.5]"], None, C, "train.betas=[0.9, 1.5]", "less than 1"),
    ([*TRAIN, "train.clip=-1"], None, C, "train.clip=-1", "must be at least 0", "0 disables clipping"),
    ([*TRAIN, "train.tasks.asr=-1"], None, C, "train.tasks.asr=-1.0", "at least 0", "0 leaves the task out"),
    ([*TRAIN, "train.tasks.mt=1"], None, C, "'mt'", "no such modality", "train.tasks.mt"),
    ([*TRAIN, "train.tasks={asr: 0}"], None, C, "train.tasks", "every share is 0", "Give one a share"),
    ([*TRAIN, "train.history_mask=2"], None, C, "train.history_mask=2", "at least 0", "less than 1"),
    ([*TRAIN, "train.save_every=0"], None, C, "train.save_every=0", "at least 1"),
    ([*TRAIN, "train.patience=0"], None, C, "train.patience=0", "at least 1"),
    ([*TRAIN, "train.workers=-1"], None, C, "train.workers=-1"),
    ([*TRAIN, "train.precision=16"], None, C, "'16'", "expected one of"),
    ([*TRAIN, "train.history_mask=0.2", "train.prompt_weight=0.5"], None, C, "train.history_mask=0.2", "also mask the speech of prompts"),
    ([*TRAIN, "log.every=0"], None, C, "log.every=0", "at least 1"),
    ([*TRAIN, "evaluate.dev_utterances=0"], None, C, "evaluate.dev_utterances=0", "at least 1"),
    ([*TRAIN, "evaluate.chains=['speech>text']"], None, C, "evaluate.chains: 'speech>text'", "three or more"),
    ([*TRAIN, "evaluate.chains=['text>text>speech']"], None, C, "evaluate.chains: 'text>text>speech'", "three or more"),
    ([*TRAIN, "evaluate.chains=['speech>text>music']"], None, C, "evaluate.chains: 'speech>text>music'", "three or more"),
    ([*TRAIN, "evaluate.chains=['speech>text>speech']"], None, C, "evaluate.chains", "must train each of its tasks"),
    ([*TRAIN, "train.codebook_weights=[0,1]"], None, C, "train.codebook_weights=[0.0, 1.0]", "first not 0"),
    ([*TRAIN, "train.strategy=fsdp2", "train.precision=64-true"], None, C, "fsdp2", "64-true", "use 32-true"),
    ([*TRAIN, "train.strategy=fsdp2", "train.optimiser=adafactor"], None, C, "adafactor", "fsdp2", "Use adamw"),
    ([*TRAIN, "model.kind=mixture", "train.strategy=fsdp2"], None, C, "kind=mixture", "strategy=fsdp2", "Leave it out"),
    ([*TRAIN, "model.kind=mixture", "train.activation_checkpointing=true"], None, C, "kind=mixture", "activation_checkpointing=True", "Leave it out"),
    ([*TRAIN, "model.towers.text.heads=5"], None, C, "heads=5", "width=128", "Choose a divisor"),
    ([*TRAIN, "model.towers.text.interval=9"], None, C, "interval=9", "layers=6", "Choose 1 to 6"),
    ([*TRAIN, "model.zip.heads=7"], None, C, "model.zip.heads=7", "width=128", "Choose a divisor"),
    ([*TRAIN, "model.modalities=[text,music]"], None, C, "model.modalities", "['music']", "Add it there"),
    ([*TRAIN, "model.modalities=[text]"], None, C, "['speech']", "model.modalities=['text']", "leave the task"),
    ([*TRAIN, "model.towers.speech.lora=-2"], None, C, "model.towers.speech.lora=-2", "at least 0"),
    ([*TRAIN, "model.towers.text={frozen: true, lora: 2}"], None, C, "lora=2 with frozen=True", "LoRA learns"),
    ([*TRAIN, "model.towers.speach.width=64"], None, C, "model.towers.speach", "no such modality", "'speech'"),
    ([*TRAIN, "model.towers.text.dropout=2"], None, C, "dropout=2.0", "at least 0 and less than 1"),
    ([*TRAIN, "model.zip.heads=0"], None, C, "model.zip.heads=0", "at least 1"),
    ([*TRAIN, "model.kind=single_decoder", "model.towers.text.frozen=true"], None, C, "frozen=True"),
    ([*TRAIN, "model.kind=single_decoder", "model.towers.text.frozen=false", "model.towers.text.lora=2"], None, C, "lora=2", "fine-tuned whole"),
    ([*TRAIN, "model.kind=single_decoder", "model.towers.text.frozen=false", "model.towers.speech.init=x"], None, C, "model.towers.speech.init=x"),
    ([*TRAIN, "codec.name=opus"], None, C, "'opus'", "codec.name=opus", "expected one of ['embedded'"),
    ([*TRAIN, "codec.name=mimi"], None, C, "codec.bandwidth_kbps", "not set", "1.1 for 8"),
    ([*TRAIN, "codec.name=encodec_24khz"], None, C, "codec.bandwidth_kbps", "not set", "choose 1.5"),
    ([*TRAIN, "codec.name=encodec_24khz", "codec.bandwidth_kbps=2"], None, C, "bandwidth_kbps=2.0", "1.5 (2 codebooks)"),
    ([*TRAIN, "data.train=0"], None, C, "data.train=0", "every split needs an utterance"),
    ([*TRAIN, "data.corpus=imaginary"], None, C, "data.corpus=imaginary", "not one of spoken, librispeech"),
    ([*TRAIN, "data.only=999999"], None, C, "data.only=999999", "between 1 and data.train=4000"),
    ([*TRAIN, "data.rates=[2,1]"], None, C, "data.rates=[2.0, 1.0]", "give the slowest and the fastest"),
    ([*TRAIN, "data.tasks={asr: [libritts]}"], None, C, "data.tasks", "'libritts'", "Name one of its corpora"),
    ([*TRAIN, "data=nosuch"], None, C, "data=nosuch", "does not exist", "Available: librilight"),
    ([*TRAIN, "decode.speech.beams=3"], None, C, "decode.speech.beams=3", "needs one codebook"),
    ([*TRAIN, "decode.text.top_p=0"], None, C, "decode.text.top_p=0.0", "more than 0 and at most 1"),
    ([*TRAIN, "evaluate.tasks=[sing]"], None, C, "evaluate.tasks=['sing']", "Give it a share there"),
    ([*TRAIN, "evaluate.tasks=[tts]"], None, C, "evaluate.tasks=['tts']", "not trained", "leave it out"),
    ([*TRAIN, "evaluate.samplings=3"], None, C, "evaluate.samplings=3", "greedy", "Give a temperature"),
    ([*TRAIN, "resume=maybe"], None, C, "'maybe'", "resume=maybe", "expected one of ['auto', 'never']"),
    ([*TRAIN, "steps"], None, C, "'steps'", "not key=value", "--help"),
    (["train", "nothing.yaml"], None, C, "nothing.yaml", "no such config", "Available: asr"),
    (["train", "x.yaml"], write("x.yaml", "train: {steps: ["), C, "x.yaml, line 2", "not valid YAML", "Write keys"),
    (["train", "x.yaml"], write("x.yaml", b"\xff"), C, "x.yaml", "not valid YAML", "Write keys"),
    (["train", "x.yaml"], write("x.yaml", "- a\n"), C, "x.yaml", "a list", "Keys: name, seed"),
    # names and places that are paths, or another service's
    ([*TRAIN, "name=a/b"], None, C, "name='a/b'", "contains '/'", "Use letters"),
    ([*TRAIN, "name=a\\b"], None, C, "name='a\\\\b'", "contains", "Use letters"),
    ([*TRAIN, "name=.."], None, C, "name='..'", "begins with a dot", "Use letters"),
    ([*TRAIN, "name=.hidden"], None, C, "name='.hidden'", "begins with a dot", "Use letters"),
    ([*TRAIN, "name="], None, C, "name=''", "is empty", "Use letters"),
    ([*TRAIN, "name=a\nb"], None, C, "name='a\\nb'", "contains", "Use letters"),
    ([*TRAIN, "name=" + "a" * 201], None, C, "name='aaa", "201 bytes, more than 200", "Use letters"),
    (["train", "x.yaml"], write("x.yaml", r'name: "a\0b"'), C, "name='a\\x00b'", "contains", "Use letters"),
    ([*TRAIN, "log.project=team/runs"], None, C, "log.project='team/runs'", "contains '/'", "Use letters"),
    ([*TRAIN, "log.project=50%"], None, C, "log.project='50%'", "contains '%'", "Use letters"),
    ([*TRAIN, "log.project="], None, C, "log.project=''", "is empty", "Use letters"),
    ([*TRAIN, "result=" + "a" * 300], None, C, "result='aaa", "not a path", "too long"),
    ([*TRAIN, "data.folder=" + "a" * 300], None, C, "data.folder='aaa", "not a path", "too long"),
    (["train", "x.yaml"], write("x.yaml", r'export: "a\0b"'), C, "export='a\\x00b'", "not a path", "NUL"),
    # what Lightning refuses
    ([*TRAIN, "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "train.accelerator=auto"),
    ([*TRAIN, "train.accelerator=gqu"], None, C, "train.accelerator=gqu", "invalid accelerator", "auto"),
    ([*TRAIN, "train.strategy=zero3"], None, C, "train.strategy=zero3", "invalid strategy", "train.strategy=auto"),
    ([*TRAIN, "train.strategy=xla"], None, C, "train.strategy=xla", "torch_xla", "train.strategy=auto"),
    ([*PREPARE, "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "auto"),
    (["pretrain", str(ROOT / "configs/pretrain-text.yaml"), "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "auto"),
    (["train-codec", CODEC, "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "auto"),
    (["bench", ASR, "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "auto"),
    (["bench-saving", ASR, "train.accelerator=tpu"], None, C, "train.accelerator=tpu", "torch_xla", "auto"),
    # places
    ([*TRAIN, "build=taken"], write("taken", ""), D, "build=taken", "File exists", "build=FOLDER"),
    ([*TRAIN, "result=x"], lambda f: (f / "x").mkdir(), D, "result=x", "is a folder", "result=x/asr.json"),
    ([*TRAIN, "export=taken"], write("taken", ""), D, "export=taken", "File exists", "export=FOLDER"),
    (TRAIN, lambda f: a_run(f, finished=True), C, "build/runs/asr", "a finished run", "name=..."),
    # towers, codecs, tokenizers
    ([*TRAIN, "model.towers.text.init=nowhere"], None, D, "nowhere holds no tower.safetensors", "make pretrain"),
    ([*TRAIN, "model.towers.speech.init=speech-tower"], damaged("speech-tower", "tower.safetensors"), D,
     "speech-tower/tower.safetensors", "hash differs", "Restore both"),
    ([*TRAIN, "model.towers.text.init=text-tower"], damaged("text-tower", "tower.json", "[]"), D,
     "text-tower/tower.json", "no JSON object", "Restore it"),
    ([*TRAIN, "model.towers.text.init=text-tower"], damaged("text-tower", "tower.json"), D, "text-tower/tower.json"),
    ([*TRAIN, "model.towers.text.init=text-tower"],
     lambda f: shutil.copytree(ROOT / "assets" / "text-tower", f / "text-tower"), D,
     "text-tower/tower.json refers to the weights", "zipper.safetensors", "Restore them"),
    ([*TRAIN, "model.towers.text.init=text-tower"], damaged("text-tower", "tokenizer.json"), D, "text-tower/tokenizer.json", "is no tokenizer.json"),
    ([*TRAIN, "model.towers.speech={init: assets/speech-tower, width: 96}"], None, C, "width=96", "assets/speech-tower", "Leave width out"),
    ([*TRAIN, "data.tokenizer=nowhere.json"], None, D, "nowhere.json", "does not exist", "should hold"),
    ([*TRAIN, "codec.weights=nowhere"], None, D, "nowhere", "no codec.safetensors", "make train-codec"),
    ([*TRAIN, "codec.weights=codec"], damaged("codec", "codec.safetensors"), D, "codec/codec.safetensors", "hash differs", "Restore both"),
    ([*TRAIN, "codec.weights=codec"], damaged("codec", "codec.json"), D, "codec/codec.json"),
    (["pretrain", ASR], None, C, "model.modalities=['text', 'speech']", "train.tasks=['asr']", "must name"),
    (["train-codec", CODEC, "train_codec.init=nowhere"], None, D, "nowhere", "no codec.safetensors"),
    (["train-codec", CODEC, "train_codec.codes=1000"], None, C, "train_codec.codes=1000", "Give one"),
    (["train-codec", CODEC, "train_codec.ratios=[]"], None, C, "train_codec.ratios=[]", "Give the default"),
    (["evaluate-codec", CODEC, "name=x"], lambda f: ((f / "build/codecs/x").mkdir(parents=True),
     (f / "build/codecs/x/result.json").touch()), C, "build/codecs/x", "finished", "name=..."),
    # corpora
    (["download", ASR], None, C, "data.corpus=spoken", "data.folder=None", "librispeech and libritts"),
    (["download", ASR, "data.corpus=librispeech"], None, C, "data.folder=None"),
    (["download", ASR, "data.corpus=librispeech", "data.folder=x", "data.splits={train: [train-dirty]}"],
     None, C, "data.splits", "train-dirty", "known are dev-clean"),
    ([*PREPARE, "data.corpus=manifest"], None, C, "data.corpus=manifest", "needs data.folder"),
    (LIST, None, D, "data.folder=list.tsv", "does not exist", "Name the file"),
    (LIST, write("list.tsv", ""), D, "list.tsv", "[]", "must be a tab-separated header"),
    (LIST, write("list.tsv", "file\twords\na\tb\n"), D, "list.tsv", "['file', 'words']", "must be a tab-separated header"),
    (LIST, write("list.tsv", "audio\ttext\na\tb\tc\n"), D, "list.tsv, line 2", "3 columns", "header has 2"),
    (LIST, write("list.tsv", b"audio\ttext\n\xff\tx\n"), D, "list.tsv", "not UTF-8 text", "Save it"),
    (LIST, lambda f: listing(f, id="same"), D, "list.tsv", "id same is not unique", "rename one"),
    (LIST, lambda f: listing(f, split="valid"), D, "list.tsv, line 2", "split='valid'", "train, dev, test"),
    (LIST, lambda f: listing(f, split="train"), D, "data.corpus=manifest", "split dev is empty", "Give it"),
    (LIST, write("list.tsv", "audio\ttext\tsplit\na.wav\tx\ttrain\nb.wav\ty\t\n"), D, "b has no split", "but others have"),
    ([*PREPARE, "data.corpus=manifest", "data.folder=x.jsonl"], write("x.jsonl", "{oops\n"), D, "x.jsonl, line 1", "not a JSON object"),
    ([*PREPARE, "data.corpus=librispeech", "data.folder=."], None, D, "no subset train-clean-100", "Download it"),
    ([*PREPARE, "data.corpus=librilight", "data.folder=."], None, D, "data.folder", "none of small, medium"),
    ([*PREPARE, "data.corpus=text", "data.folder=."], None, D, "no .txt", "Name a folder"),
    ([*PREPARE, "data.text_folder=nowhere"], None, D, "data.text_folder=nowhere", "Name a folder"),
    # recordings and transcripts
    (LIST, recording(), D, "1 of 3", "good.flac does not exist", "correct its manifest"),
    (LIST, recording(np.zeros(8000)), D, "1 of 3", "good.flac is silent", "*.skipped lists them"),
    (LIST, recording(np.full(8000, np.nan, np.float32), name="x.wav"), D, "x.wav", "NaN or infinite", "lists them"),
    (LIST, recording(np.full(8000, np.inf, np.float32), name="x.wav"), D, "x.wav holds", "NaN or infinite"),
    (LIST, recording(noise(31)), D, "good.flac", "31.0 s", "data.max_seconds=30", "raise the limit"),
    (LIST, lambda f: (listing(f), (f / "good.flac").write_text("text", encoding="utf-8")), D, "good.flac", "cannot be read as audio"),
    (LIST, lambda f: (listing(f), (f / "good.flac").mkdir()), D, "good.flac", "is a folder", "correct its"),
    (LIST, recording(noise(), "room 101"), D, "3 of 3", "'101'", "Write them in words"),
    (LIST, recording(noise(), "?!"), D, "3 of 3", "has no text", "lists them"),
    # checkpoints
    (EVALUATE, None, C, "checkpoints/best.ckpt", "does not exist", "Train the run first"),
    (EVALUATE, lambda f: (a_run(f) / "checkpoints/best.ckpt").write_text("x", encoding="utf-8"), D, "best.ckpt is damaged",
     "not a zip file", "evaluate.checkpoint"),
    (EVALUATE, lambda f: torch.save({"x": Payload()}, a_run(f) / "checkpoints/best.ckpt"), D, "best.ckpt",
     "more than tensors and plain values (getattr)", "safetensors"),
    (EVALUATE, lambda f: naming_code(a_run(f) / "checkpoints/best.ckpt"), D, "best.ckpt", "_instantiator=pathlib.Path",
     "names code to run", "safetensors"),
    (["generate", "build/runs/asr", "--text", "so"], lambda f: naming_code(a_run(f) / "checkpoints/best.ckpt"), D,
     "best.ckpt", "_instantiator=pathlib.Path", "names code to run", "safetensors"),
    (EVALUATE, lambda f: torch.save({"state_dict": {}}, a_run(f) / "checkpoints/best.ckpt"), D, "best.ckpt", "no hyper_parameters", "Train it again"),
    (EVALUATE, lambda f: torch.save([1], a_run(f) / "checkpoints/best.ckpt"), D, "best.ckpt", "not a checkpoint"),
    ([*EVALUATE, "evaluate.checkpoint=newest"], None, C, "'newest'", "expected one of ['best', 'last']"),
    # generate
    (["generate", "nowhere", "--text", "so"], None, C, "nowhere is no model", "config.yaml", "name assets/zipped"),
    (["generate", "nowhere", "--text", "so", "-o", "new/dir/x.wav"], None, C, "nowhere is no model", "name assets/zipped"),
    ([*SAY, "--text", "so"], None, C, "2 prompts are given (text, text)", "prompt is one segment", "Give one"),
    (["generate", ZIPPED], None, C, "Give a prompt", "--text, --audio or --given"),
    (["generate", ZIPPED, "--text", ""], None, C, "''", "no letter of a to z"),
    (["generate", ZIPPED, "--text", "room 101"], None, C, "'room 101'", "digits", "Write them in words"),
    (["generate", ZIPPED, "--text", "日本語"], None, C, "'日本語'", "has the letter"),
    ([*SAY, "--then", "speech", "speech", "-o", "x.wav"], write("x.2.wav", ""), C, "x.2.wav exists", "--overwrite"),
    ([*SAY, "--at-a-time", "0"], None, C, "--at-a-time 0", "at least 1"),
    ([*SAY, "--decode", "speech.temperature=inf"], None, C, "temperature=inf", "not a finite number"),
    (["generate", ZIPPED, "--batch", "x.tsv"], write("x.tsv", b"id\ttext\na\t\xe9\n"), C, "x.tsv", "not UTF-8 text"),
    (["generate", ZIPPED, "--batch", "x.tsv"], write("x.tsv", "id\ttext\na\tso\na\tit\n"), C, "x.tsv, line 3", "needs a unique id"),
    (["generate", ZIPPED, "--text", "so it is " * 99], None, C, "subwords", "at most", "Cut it into sentences"),
    (["generate", ZIPPED, "--audio", "gone.wav"], None, D, "gone.wav", "does not exist"),
    (["generate", ZIPPED, "--audio", "x.wav"], lambda f: sf.write(f / "x.wav", np.zeros(9000), 16000), D, "x.wav", "is silent"),
    (["generate", ZIPPED, "--audio", "x.wav", "--then", "text", "speech"], lambda f: sf.write(f / "x.wav", noise(60), 16000), D, "x.wav", "60.0 s", "Shorten it"),
    (["generate", ZIPPED, "--audio", "x.wav", "-o", "y.wav"], None, C, "-o y.wav", "text is printed", "Leave -o out"),
    (["generate", ZIPPED, "--given", "audio=x.wav"], None, C, "'audio'", "There is no modality"),
    ([*SAY, "-o", "said.txt"], None, C, "-o said.txt", "as .wav", "Give a file"),
    ([*SAY, "-o", "x.wav"], write("x.wav", ""), C, "x.wav exists", "another -o, or give --overwrite"),
    ([*SAY, "--then", "music"], None, C, "'music'", "There is no modality"),
    ([*SAY, "--then", "auto", "text"], None, C, "--then auto text", "auto cannot be combined"),
    ([*SAY, "--decode", "speech.heat=1"], None, C, "'heat'", "SamplingConfig", "decode.speech.heat=1"),
    ([*SAY, "--decode", "speech.temperature=-1"], None, C, "decode.speech.temperature=-1.0", "must be at least 0"),
    ([*SAY, "--seed", "-1"], None, C, "--seed -1", "at least 0"),
    (["generate", ZIPPED, "--batch", "gone.tsv"], None, C, "--batch gone.tsv", "no such file"),
    (["generate", ZIPPED, "--batch", "x.csv"], write("x.csv", "id,text\n"), C, "x.csv", "give a .tsv"),
    (["generate", ZIPPED, "--batch", "x.tsv"], write("x.tsv", "id\ttext\na/b\tso\n"), C, "x.tsv, line 2", "'a/b'", "without slashes"),
    (["generate", ZIPPED, "--batch", "x.jsonl"], write("x.jsonl", "[1]\n"), C, "x.jsonl, line 1", "[1]", "Write one a line"),
    (["generate", "zipped", "--text", "so"], damaged("zipped", "zipper.safetensors"), D,
     "zipped/zipper.safetensors", "not the file that zipper.json describes", "Restore both"),
    (["generate", "build/runs/asr", "--text", "so"], a_run, C, "build/runs/asr", "no checkpoints/best.ckpt"),
    # the rest
    (["certify", "zipped"], lambda f: (copied("zipped", f) / "zipper.json").write_text("{}"), D, "zipped", "Restore both"),
    (["export", ZIPPED, "file"], write("file", ""), C, "file is a file", "Name a folder"),
    (["evaluate", "mine"], lambda f: (f / "mine").mkdir(), C, "mine holds no model", "config.yaml"),
    (["compare", "a.json", "b.json"], None, D, "a.json", "matches no file", "give a result file"),
    (["compare", "a.json", "a.json"], write("a.json", "oops"), D, "a.json", "not JSON", "Give a result file"),
    (["compare", "a.json", "a.json"], write("a.json", "[1]"), D, "a.json", "no JSON object"),
    (["compare", "a.json", "a.json"], write("a.json", '{"task": "bench"}'), D, "a.json", "does not exist"),
    (["compare", "a.json", "a.json"], write("a.json", "{}"), D, "a.json", "a.utterances.jsonl.xz does not exist", "give the asr.json"),
    (["compare", "a.json", "b.json"], lambda f: (result(f / "a.json"), result(f / "b.json", split="dev")), D,
     "a and b", "split is 'test' in one and 'dev' in the other", "Evaluate both"),
    (["compare", "a.json", "b.json"], lambda f: (result(f / "a.json"), result(f / "b.json", per_utterance=[
     {"id": "other", "errors": 1, "words": 4, "reference": "so it is then"}])), D, "a and b", "utterances or references differ",
     "Evaluate both"),
    (["compare", "a.json", "a.json"], lambda f: result(f / "a.json", per_utterance=[{"id": "x"}]), D, "a.json",
     "has no errors", "Evaluate the run again"),
    (["import-gguf", "gone.gguf", "out"], None, C, "gone.gguf", "does not exist", "Give a .gguf"),
    (["import-gguf", "x.gguf", "out"], write("x.gguf", "GGUF?"), D, "x.gguf", "cannot be read", "Fetch it again"),
    (["push", ".", "me/mine"], None, C, ".", "no exported model", "assets/zipped"),
    ([*TRAIN, "decode.text={beams: 4, guidance: 2}"], None, C, "decode.text", "guidance=2", "Set one, not both"),
    (["faults", ASR, "--times", "0"], None, C, "--times 0", "at least 1"),
    (["faults", ASR, "--result", "."], None, D, "--result .", "is a folder", "Name a file"),
    (["gpu", "--batches", "16", "0"], None, C, "--batches 0", "at least 1"),
    (["bench-scale", "--rows", "0"], None, C, "--rows 0", "at least 1"),
    (["bench-live", ZIPPED, "--out", "."], None, D, "--out .", "is a folder", "Name a file: --out result.json"),
    (["three-towers", ZIPPED, "--out", "a.json"], None, C, "assets/zipped", "no tower for images", "assets/three-towers"),
    (["sweep", "configs/ablations/zips.yaml", "--jobs", "0"], None, C, "--jobs 0", "at least 1"),
    (["serve", ZIPPED, "--batch", "0"], None, C, "--batch 0", "at least 1"),
    (["serve", ZIPPED, "--seconds", "nan"], None, C, "--seconds nan", "at least 0"),
    (["web", ZIPPED, "--port", "70000"], None, C, "--port 70000", "at least 0 and at most 65535"),
]  # fmt: skip


def test_there_are_enough_of_them():
    assert len(CASES) >= 100
    assert len({(tuple(argv), str(words)) for argv, _, _, *words in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("argv", "setup", "kind", "words"),
    [(argv, setup, kind, words) for argv, setup, kind, *words in CASES],
    ids=[f"{argv[0]} {' '.join(words[:2])}" for argv, _, _, *words in CASES],
)
def test_bad_input_is_a_clear_error_before_work_starts(in_tmp, monkeypatch, argv, setup, kind, words):
    monkeypatch.setattr(spoken, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("work has begun"))
    if argv[0] == "import-gguf":  # else it says what is to be installed
        pytest.importorskip("gguf")
        pytest.importorskip("accelerate")
    if setup:
        setup(in_tmp)
    before = {file: file.read_bytes() for file in in_tmp.rglob("*") if file.is_file()}
    with pytest.raises(kind) as error:
        run(argv)
    said = str(error.value)
    assert type(error.value) is kind
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert {file: file.read_bytes() for file in before} == before
    assert not [file for file in in_tmp.glob("build/runs/*/config.yaml") if file not in before]
    assert not list(in_tmp.glob("build/stores/*/store.json"))
    assert not Path("opened").exists()
    assert not Path("new").exists()
