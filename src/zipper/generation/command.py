"""`zipper generate`: generate speech and text from text or audio, with a run folder or an exported model."""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from zipper.config import with_overrides
from zipper.data.documents import Segment
from zipper.disk import check_file_name, check_writable
from zipper.errors import ConfigError, DataError
from zipper.generation.batch_file import LOCK, Entries, Prompt, read_batch
from zipper.generation.exported import weights_written
from zipper.generation.generate import MAX_SEGMENTS, GenerationOutput
from zipper.generation.generate import generate as generate_segments
from zipper.generation.order import check_prompts, route
from zipper.generation.prompts import prompt_of
from zipper.generation.threads import few_threads
from zipper.generation.word_times import Word
from zipper.generation.zipper import Zipper
from zipper.hub import model_folder
from zipper.modalities.base import modality_class

Order = list[str] | Literal["auto"]
LISTED = 20  # problems in an error message
OTHER = {"text": "speech", "speech": "text"}  # default output modality


def generate(args: argparse.Namespace) -> None:
    """Generate the requested segments, save and print them. Raises ConfigError on invalid requests before
    any model runs."""
    if bool(args.prompts) == bool(args.batch):
        raise ConfigError("Give a prompt: one --text, --audio or --given, or --batch for several prompts.")
    if len(args.prompts or []) > 1:
        raise ConfigError(
            f"{len(args.prompts)} prompts are given ({', '.join(kind for kind, _ in args.prompts)}), but a "
            "prompt is one segment. Give one, or --batch for several prompts."
        )
    requests = read_batch(args.batch) if args.batch else [Prompt("out", *args.prompts[0])]
    orders = {prompt.id: order_of(prompt, args.then) for prompt in requests}
    model, ways = Zipper.from_pretrained(args.model), list[list[str]]()
    for prompt in requests:
        if (order := orders[prompt.id]) != ["auto"]:
            orders[prompt.id] = route(model.network, prompt.modality, order)
            if (way := orders[prompt.id]) != order and way not in ways:
                ways.append(way)
                print(f"by way of what the model was trained for: {' > '.join([prompt.modality, *way])}")
    kinds = suffixes(*orders.values())
    out: Path = args.out or Path("generated" if args.batch else f"out{kinds[0] if kinds else ''}")
    writes = bool(args.batch or kinds)
    asked = {key: getattr(args, key) for key in ("then", "decode", "seed", "timestamps")}
    asked |= {"model": str(args.model), "prompts": [[*vars(one).values()] for one in requests]}
    entries = Entries(out, asked | {"written": weights_written(model_folder(str(args.model)))})
    if writes:
        check_free(out, bool(args.batch), kinds, args.overwrite or (bool(args.batch) and entries.resumes()))
    elif args.out:
        raise ConfigError(f"-o {out}: text is printed. Leave -o out, or write a file of many with --batch.")
    model.config = with_overrides(model.config, [f"decode.{word}" for word in args.decode])
    decode = model.config.decode
    groups: dict[str, list[tuple[Prompt, Segment]]] = {}
    long: list[Prompt] = []  # recordings that are transcribed piece by piece
    problems: list[ConfigError | DataError] = []
    for prompt in requests:  # read all prompts before generating any
        order = orders[prompt.id]
        try:
            if (prompt.modality, order) == ("speech", ["text"]):
                wave = model.modalities["speech"].read(prompt.raw, *prompt.piece)
                if model.is_long(wave):
                    long.append(prompt)
                    continue
            segment = model.encode(prompt.modality, prompt.raw, *prompt.piece)
            groups.setdefault(" ".join(order), []).append((prompt, segment))
        except (ConfigError, DataError) as error:
            problems.append(type(error)(f"{prompt.id}: {error}") if args.batch else error)
    if problems:
        head = [f"{len(problems)} of {len(requests)} prompts cannot be used:"] if len(problems) > 1 else []
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise type(problems[0])("\n  ".join([*head, *map(str, problems[:LISTED]), *more]))
    for name, group in groups.items():
        check_prompts(model.network, [prompt_of(one.id, segment) for one, segment in group], _order(name))
    target = out if args.batch else out.parent
    if writes:
        check_writable(target, 0, f"-o {out}", "-o ELSEWHERE")  # creates the folder
    with entries.lock() if args.batch else nullcontext():
        if args.batch:  # another process may have written them since
            check_free(out, True, kinds, args.overwrite or entries.resumes())
        there = entries.begin() if args.batch else set()

        def keep(entry: dict[str, Any], started: float) -> None:
            if args.batch:
                entries.add(entry)
            else:
                show(entry, time.monotonic() - started)

        alone = len(requests) == 1
        with tqdm(
            total=len(requests), initial=len(there), desc="generate", unit="prompt", disable=alone
        ) as bar:
            for name, group in groups.items():
                group = [(prompt, segment) for prompt, segment in group if prompt.id not in there]
                for start in range(0, len(group), args.at_a_time):
                    part = group[start : start + args.at_a_time]
                    started = time.monotonic()
                    prompts = [prompt_of(prompt.id, segment) for prompt, segment in part]
                    with few_threads(model.network, len(part)):
                        outputs = generate_segments(
                            model.network, prompts, _order(name), model.statistics, decode, args.seed
                        )
                    for (prompt, _), segments in zip(part, outputs, strict=True):
                        stem = target / prompt.id if args.batch else out.with_suffix("")
                        words = {}  # before `save`, which may replace the recording
                        if args.timestamps and prompt.modality == "speech" and segments[0].modality == "text":
                            text = model.modalities["text"].decode(segments[0].content)
                            words = {"words": transcribe_words(model, prompt, text)}
                        keep({**save(model, prompt, segments, stem), **words}, started)
                    bar.update(len(part))
            for prompt in (one for one in long if one.id not in there):
                started = time.monotonic()
                keep(transcribe_long(model, prompt, args.timestamps, args.seed), started)
                bar.update()
        if args.batch:
            entries.end()
            print(f"{len(requests)} prompts -> {entries.file}")


def suffixes(*orders: list[str]) -> list[str]:
    """Suffixes of the files that are written, of each segment that needs one; auto: at most so many."""
    if ["auto"] in orders:
        return [".wav"] * MAX_SEGMENTS
    return [kind for order in orders for name in order if (kind := modality_class(name).suffix)]


def check_free(out: Path, batch: bool, kinds: list[str], overwrite: bool) -> None:
    """Raise ConfigError if an output file or folder already exists."""
    if batch:
        filled = out.is_dir() and any(file.name != LOCK for file in out.iterdir())
        taken = [out] if out.is_file() or (filled and not overwrite) else []
    else:
        if out.suffix not in kinds or out.is_dir():
            what = "speech is saved as .wav" if ".wav" in kinds else f"the output is saved as {kinds[0]}"
            raise ConfigError(f"-o {out}: {what}. Give a file name that ends in {kinds[0]}.")
        stems = [numbered(out.with_suffix(""), n) for n in range(1, len(kinds) + 1)]
        files = [stem.with_name(f"{stem.name}{kind}") for stem, kind in zip(stems, kinds, strict=True)]
        for file in files:
            check_file_name(file)
        taken = [file for file in files if file.exists() and not overwrite]
    if taken:
        raise ConfigError(
            f"{taken[0]} exists and is not overwritten. Choose another -o, or give --overwrite."
        )


def numbered(stem: Path, number: int) -> Path:
    """Stem of the files of one prompt: STEM, STEM.2, ..."""
    return stem.with_name(f"{stem.name}.{number}") if number > 1 else stem


def _order(name: str) -> Order:
    return "auto" if name == "auto" else name.split()


def order_of(prompt: Prompt, then: list[str] | None) -> list[str]:
    """Order of output modalities: `--then`, or by default the other modality than the prompt's."""
    modality_class(prompt.modality)  # known
    if then is None:
        if prompt.modality not in OTHER:
            raise ConfigError(f"--given {prompt.modality}=...: name the output modalities with --then.")
        return [OTHER[prompt.modality]]
    if "auto" in then and len(then) > 1:
        raise ConfigError(
            f"--then {' '.join(then)}: auto cannot be combined, because the model chooses every segment."
        )
    return then


def save(model: Zipper, prompt: Prompt, segments: list[GenerationOutput], stem: Path) -> dict[str, Any]:
    """Save the segments that need a file. Returns the entry of generated.jsonl."""
    entries: list[dict[str, Any]] = []
    for segment in segments:
        modality = model.modalities[segment.modality]
        value = modality.decode(segment.content)
        files = sum("wav" in entry or "file" in entry for entry in entries)
        file = modality.write(value, numbered(stem, 1 + files))
        if file is None:
            value = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
            entries.append({segment.modality: value, "stopped": segment.finish_reason})
        elif modality.sample_rate:
            seconds = round(modality.seconds(value), 3)
            entries.append({"wav": str(file), "seconds": seconds, "stopped": segment.finish_reason})
        else:
            entries.append({"file": str(file), "stopped": segment.finish_reason})
        if segment.doubt:
            entries[-1]["doubt"] = segment.doubt
    return {"id": prompt.id, "given": [[prompt.modality, prompt.raw]], "written": entries}


def transcribe_long(model: Zipper, prompt: Prompt, timestamps: bool, seed: int) -> dict[str, Any]:
    """Entry of generated.jsonl of a recording that is cut at its pauses."""
    doubts: dict[str, None] = {}  # in their order
    wave = model.modalities["speech"].read(prompt.raw, *prompt.piece)
    words = model.transcribe_long(wave, timestamps, lambda doubt: doubts.update({doubt: None}), seed)
    entry: dict[str, Any] = {"id": prompt.id, "given": [[prompt.modality, prompt.raw]]}
    if timestamps:
        entry["words"] = later(words, prompt)
    doubt = {"doubt": "; ".join(doubts)} if doubts else {}
    text = " ".join(word.text for word in words)
    return {**entry, "written": [{"text": text, "stopped": "stop", **doubt}]}


def transcribe_words(model: Zipper, prompt: Prompt, text: str) -> list[Word]:
    """Words of a recording's transcript, in seconds from the start of its file."""
    wave = model.modalities["speech"].read(prompt.raw, *prompt.piece)
    return later(model.transcript_words(wave, text), prompt)


def later(words: list[Word], prompt: Prompt) -> list[Word]:
    """Words of a piece of a recording, in seconds from the start of its file."""
    start, _ = prompt.piece
    return [Word(word, round(start + a, 2), round(start + b, 2)) for word, a, b in words]


def show(entry: dict[str, Any], took: float) -> None:
    """Print one line per segment."""
    for one in entry["written"]:
        why = "" if one["stopped"] == "stop" else f"  [stopped: {one['stopped']}]"
        why += f"  [doubtful: {one['doubt']}]" if "doubt" in one else ""
        if "wav" in one:
            print(f"speech  {one['wav']}, {one['seconds']:.2f} s{why}")
        else:
            kind, value = next(iter(one.items()))
            print(f"{kind:<7} {value or '(empty)'}{why}")
    for word, start, end in entry.get("words", []):
        print(f"{start:7.2f} {end:7.2f}  {word}")
    seconds = sum(one.get("seconds", 0.0) for one in entry["written"])
    print(f"took    {took:.2f} s" + (f", {took / seconds:.2f} of real time" if seconds else ""))
