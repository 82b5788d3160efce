"""README.md and docs/: their Python runs, and what they name is there."""

import contextlib
import doctest
import io
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import soundfile as sf

import zipper
from reproduce import ROOT
from reproduce.sweep_file import read_sweep
from zipper.cli import parser
from zipper.config import RunConfig, describe, load_config
from zipper.evaluation.result_archive import result_files
from zipper.generation.generator import Generator

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run -->"  # on the line before a block that needs minutes or a network
SECTIONS = "data|codec|model|train|train_codec|decode|evaluate|asr_scorer|log"
RESULTS = result_files(ROOT / "results")
KEYS = {key for key, _, _ in describe()}
SENTENCE = "every wednesday at five daniel slept with the clever tiger"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Block(NamedTuple):
    """A fenced block. language: sh, python, ...; line: where it begins, from 1."""

    language: str
    text: str
    line: int
    run: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^(?P<mark>{re.escape(NOT_RUN)}\n)?```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [
        Block(one[2], one[3], 1 + text[: one.start(2)].count("\n"), run=one["mark"] is None) for one in found
    ]


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, each on one line."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines, as words."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    lines += [code for code in inline_code(page) if re.match(r"(make|python|sbatch|zipper) ", code)]
    for line in lines:
        words = shlex.split(line, comments=True)
        for semicolon, part in itertools.groupby(words, key=";".__eq__):
            if not semicolon:
                yield [*part]


def test_there_are_blocks_and_few_are_not_run():
    python = [block for page in PAGES for block in blocks(page) if block.language == "python"]
    assert len(python) >= 6
    assert sum(not block.run for block in python) <= 2


@pytest.fixture
def folder(in_tmp, monkeypatch) -> Path:
    """What the examples find: a recording and a manifest. A Trainer makes two steps, without a word."""
    recording = ROOT / "results" / "samples" / "test-00000-original.flac"
    (in_tmp / "recording.flac").write_bytes(recording.read_bytes())
    (in_tmp / "results" / "samples").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "samples" / "8629-261139-0000.ogg", in_tmp / "results" / "samples")
    splits = [(split, i) for split in ("train", "dev", "test") for i in range(3)]
    rows = [f"{split}-{i}\trecording.flac\t{SENTENCE}\t{split}" for split, i in splits]
    (in_tmp / "mine.tsv").write_text("\n".join(["id\taudio\ttext\tsplit", *rows]) + "\n", encoding="utf-8")

    def short(**settings) -> L.Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return trainer(**{**settings, **quiet, "accelerator": "cpu", "max_steps": 2})

    trainer = L.Trainer
    monkeypatch.setattr(L, "Trainer", short)
    return in_tmp


@every_page
def test_the_python_of_a_page_runs_and_prints_what_it_says(page, folder):
    names: dict[str, object] = {}
    printed = ""
    for block in blocks(page):
        if block.language == "python" and block.run:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            printed = out.getvalue()
        elif block.language == "text":
            assert printed.endswith(block.text), f"{page.name}, line {block.line}"


def test_the_examples_in_public_docstrings_run(folder):
    find = doctest.DocTestFinder(exclude_empty=True).find
    objects = [zipper, Generator, *(getattr(zipper, name) for name in zipper.__all__)]
    found = [test for one in objects for test in find(one, one.__name__, globs={"zipper": zipper, "L": L})]
    tests = [test for test in found if test.examples]
    assert len(tests) >= 6
    for test in tests:
        said = io.StringIO()
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.write)
        assert not said.getvalue()
    assert sf.info("helen.wav").samplerate == 16000


@every_page
def test_every_make_target_exists(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = " ".join(re.findall(r"^([^\s:=#][^:=\n]*):(?!=)", makefile, re.M)).split()
    rules = [re.compile(re.escape(name).replace("%", "(.+)")) for name in targets]
    for words in commands(page):
        if words[0] != "make":
            continue
        for target in words[1:]:
            if "=" in target or target.startswith("-") or target.isupper():
                continue
            assert any(rule.fullmatch(target) for rule in rules), target
            if name := re.fullmatch("ablation-(.*)", target):
                assert (ROOT / "configs" / "ablations" / f"{name[1]}.yaml").is_file(), target


def config_of(file: str, words: list[str]) -> RunConfig:
    """Of a recipe; a run's folder and the shipped models have that of theirs."""
    name = re.sub(r"^build/runs/(\w+)/config\.yaml$", r"configs/\1.yaml", file)
    shipped = {"assets/zipped": "configs/joint.yaml", "assets/real": "configs/mini-librispeech.yaml"}
    return load_config(ROOT / shipped.get(name, name), words)


@every_page
def test_every_command_line_is_understood(page):
    """Its options exist, its files are there, and its settings make a config."""
    for words in commands(page):
        if words[0] == "sbatch":
            script, file, *settings = [word for word in words[1:] if not word.startswith("-")]
            assert (ROOT / script).is_file()
            config_of(file, settings)
        if words[:3] != ["python", "-m", "zipper"] or words[3:] in ([], ["--help"]):
            continue
        if any(word.isupper() for word in words):  # python -m zipper prepare CONFIG
            assert re.search(rf"^    {words[3]}\s", parser().format_help(), re.M), words
            continue
        args, more = parser().parse_known_args(words[3:])
        settings = [*getattr(args, "settings", []), *more]
        assert all("=" in word for word in settings), words
        if hasattr(args, "config"):
            config_of(str(args.config), settings)
        elif args.command == "sweep":
            for run in read_sweep(ROOT / args.file).runs():
                load_config(ROOT / run.config, [*run.overrides, *settings])
        elif args.command == "generate":
            load_config(None, [f"decode.{word}" for word in args.decode])


@every_page
def test_every_setting_exists(page):
    shell = [block.text for block in blocks(page) if block.language == "sh"]
    for code in [*inline_code(page), *shell]:
        for key in re.findall(rf"(?<![\w/.-])(?:{SECTIONS})(?:\.[a-z_]+)+", code):
            known = re.sub(r"^(model\.towers|decode)\.[a-z]+\b", r"\1.NAME", key)
            known = re.sub(r"^(train\.tasks|data\.tasks)\.[a-z]+$", r"\1", known)
            assert known in KEYS or any(one.startswith(f"{known}.") for one in KEYS), key


@every_page
def test_every_file_that_a_page_names_is_there(page):
    for code in [*inline_code(page), *(word for words in commands(page) for word in words)]:
        if re.fullmatch(r"(configs|src|results|assets|reports|notebooks|tests|docs|\.ci)/[\w./*-]*", code):
            packed = (file for file in RESULTS if file.relative_to(ROOT).match(code))
            assert [*ROOT.glob(code), *packed], code


@every_page
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, anchor


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"{page.relative_to(ROOT)}" not in readme] == []
    assert len(readme.splitlines()) <= 150


def test_the_sweep_of_the_docs_is_one(tmp_path):
    (example,) = [b for b in blocks(ROOT / "docs" / "training.md") if b.language == "yaml"]
    file = tmp_path / "mine.yaml"
    file.write_text(example.text, encoding="utf-8")
    runs = read_sweep(file).runs()
    assert len(runs) == 4
    for run in runs:
        load_config(ROOT / run.config, run.overrides)


@every_page
def test_every_measured_figure_stands_in_the_results_or_the_log(page):
    """Shares, times and sizes: whatever a page says, a file says as well."""
    number = r"\d[\d,]*(?:\.\d+)?"
    files = [ROOT / name for name in ("RESULTS.md", "LOG.md", "Makefile")]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    known = {float(one.replace(",", "")) for one in re.findall(number, sources)}
    text = page.read_text(encoding="utf-8")
    for told in re.findall(rf"(?<![\w.])({number})\s(?:%|points|minutes|hours|GB|s\b)", text):
        assert float(told.replace(",", "")) in known, told
