"""Commands and their arguments. Light: `--help` loads no model code."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipper.config import RunConfig, load_config

USAGE = """examples:
  zipper generate assets/zipped --text "julia carried thirty five green buttons" -o julia.wav
  zipper generate assets/zipped --audio julia.wav
  zipper generate build/runs/joint --audio julia.wav --then text speech -o again.wav
  zipper generate assets/zipped --batch sentences.tsv -o spoken      (columns: id, and text or audio)
"""


@dataclass(frozen=True)
class Command:
    """run: what it does, its docstring what `--help` says of it. arguments: added to its parser."""

    run: Callable[[argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None]
    settings: bool = False  # whether its --help lists the settings

    @property
    def meaning(self) -> str:
        return self.run.__doc__ or ""


def config_command(run: Callable[[RunConfig, str], None]) -> Command:
    """A command of a config and overrides. run: is given the config and the command line."""

    def loaded(args: argparse.Namespace) -> None:
        run(load_config(args.config, args.overrides), args.line)

    loaded.__doc__ = run.__doc__
    return Command(loaded, add_config_arguments, settings=True)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """A YAML file and overrides."""
    parser.add_argument("config", type=Path, help="YAML file that holds what differs from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `zipper generate`."""
    parser.epilog = USAGE
    parser.add_argument(
        "model",
        type=Path,
        help="folder of a run or of an exported model (assets/zipped), or user/name of one on the hub",
    )
    parser.add_argument(
        "--decode", nargs="+", default=[], metavar="KEY=VALUE",
        help="if not as trained: speech.temperature=0.7, text.beams=4, ... (decode.* in `zipper --help`)",
    )  # fmt: skip
    parser.add_argument(
        "--text", action=_AppendPrompt, dest="prompts", metavar="WORDS", help="text to go on from"
    )
    parser.add_argument(
        "--audio", action=_AppendPrompt, dest="prompts", metavar="FILE", help="speech to go on from, instead"
    )
    parser.add_argument(
        "--batch", type=Path, metavar="FILE",
        help="several prompts, each on its own: .tsv or .jsonl of id, and text or audio (a path beside FILE)",
    )  # fmt: skip
    parser.add_argument(
        "--then",
        nargs="+",
        metavar="MODALITY",
        help="what to write, in order: text, speech, ... (each reads the segment before it alone); or auto",
    )
    parser.add_argument("-o", "--out", type=Path, help="file for the speech (out.wav); with --batch a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing, where decoding draws")
    parser.add_argument(
        "--at-a-time", type=int, default=16, metavar="N", help="prompts of a batch decoded together"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --out")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `zipper compare`."""
    for side in ("a", "b"):
        parser.add_argument(
            side, metavar=f"{side.upper()}.json", help="result file, or a quoted pattern of several (seeds)"
        )


def add_import_gguf_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `zipper import-gguf`."""
    parser.add_argument("file", type=Path, help="the .gguf")
    parser.add_argument("folder", type=Path, help="new, or empty")


def add_certify_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `zipper certify`."""
    parser.add_argument("folder", type=Path, help="what `export=` or `save_pretrained` wrote")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `zipper push`."""
    parser.add_argument("folder", type=Path, help="what `export=` wrote")
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--private", action="store_true", help="where it is made anew")


class _AppendPrompt(argparse.Action):
    def __call__(self, parser: Any, space: argparse.Namespace, value: Any, option: str | None = None) -> None:
        kind = "text" if option == "--text" else "speech"
        setattr(space, self.dest, [*(getattr(space, self.dest) or []), (kind, value)])
