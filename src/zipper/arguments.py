"""Commands and their arguments. Imports no model code, so that `--help` is fast."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipper.config import RunConfig, load_config
from zipper.errors import ConfigError

USAGE = """examples:
  zipper generate assets/zipped --text "julia carried thirty five green buttons" -o julia.wav
  zipper generate assets/zipped --audio julia.wav
  zipper generate build/runs/joint --audio julia.wav --then text speech -o again.wav
  zipper generate assets/zipped --batch sentences.txt -o spoken      (or a .tsv: id, and text or audio)
  zipper generate assets/real --batch recordings -o transcripts      (a folder)
"""


@dataclass(frozen=True)
class Command:
    """A subcommand of `zipper`.

    run: executes it; its docstring is the help text. arguments: adds its arguments to a parser.
    """

    run: Callable[[argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None]
    lists_settings: bool = False  # its --help lists all settings

    @property
    def help(self) -> str:
        return self.run.__doc__ or ""


def config_command(run: Callable[[RunConfig, str], None]) -> Command:
    """Command that takes a config file and overrides. run: called with the config and the command line."""

    def loaded(args: argparse.Namespace) -> None:
        run(load_config(args.config, args.overrides), args.line)

    loaded.__doc__ = run.__doc__
    return Command(loaded, add_config_arguments, lists_settings=True)


def add_number(
    parser: argparse.ArgumentParser,
    name: str,
    default: float | list[int],
    text: str,
    least: float = 1,
    most: float = math.inf,
) -> None:
    """Adds an option of the type of its default, which may be a list. One outside its range raises
    ConfigError."""
    several = default if isinstance(default, list) else [default]

    class Checked(argparse.Action):  # a `type` function would print usage, and a reason without the range
        def __call__(
            self, parser: Any, space: argparse.Namespace, value: Any, option: str | None = None
        ) -> None:
            for one in value if isinstance(value, list) else [value]:
                if not least <= one <= most:
                    limit = f"at least {least:g}" + ("" if most == math.inf else f" and at most {most:g}")
                    raise ConfigError(f"{name} {one} must be {limit}.")
            setattr(space, self.dest, value)

    more = f"{text} (default: {' '.join(f'{one:g}' for one in several)})"
    count = "+" if isinstance(default, list) else None
    parser.add_argument(name, type=type(several[0]), nargs=count, action=Checked, default=default, help=more)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a YAML file and overrides."""
    parser.add_argument("config", type=Path, help="YAML file with the settings that differ from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper generate`."""
    parser.epilog = USAGE
    parser.add_argument(
        "model",
        type=Path,
        help="folder of a run or of an exported model (assets/zipped), or user/name on the Hugging Face hub",
    )
    parser.add_argument(
        "--decode", nargs="+", default=[], metavar="KEY=VALUE",
        help="decoding overrides: speech.temperature=0.7, text.beams=4, ... (decode.* in `zipper --help`)",
    )  # fmt: skip
    parser.add_argument("--text", action=_AppendPrompt, dest="prompts", metavar="TEXT", help="text prompt")
    parser.add_argument(
        "--audio", action=_AppendPrompt, dest="prompts", metavar="FILE", help="speech prompt (audio file)"
    )
    parser.add_argument(
        "--given",
        action=_AppendPrompt,
        dest="prompts",
        metavar="MODALITY=INPUT",
        help="prompt of another modality",
    )
    parser.add_argument(
        "--batch", type=Path, metavar="FILE",
        help="prompts: a folder of recordings, a .txt with a sentence a line, or a .tsv or .jsonl with "
        "id, and text or audio (a path relative to FILE)",
    )  # fmt: skip
    parser.add_argument(
        "--then",
        nargs="+",
        metavar="MODALITY",
        help="output modalities in order: text, speech, ... (each is generated from the segment before it), "
        "or auto",
    )
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="also start and end of each word of a transcript, in seconds",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="output file of the speech (out.wav); with --batch a folder"
    )
    add_number(parser, "--seed", 0, "random seed of sampling", least=0)
    add_number(parser, "--at-a-time", 16, "prompts decoded in one batch")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper compare`."""
    for side in ("a", "b"):
        parser.add_argument(
            side,
            metavar=f"{side.upper()}.json",
            help="result file, or a quoted glob pattern for several seeds",
        )


def add_import_gguf_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper import-gguf`."""
    parser.add_argument("file", type=Path, help="GGUF file to convert")
    parser.add_argument("folder", type=Path, help="output folder, new or empty")


def add_certify_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper certify`."""
    parser.add_argument("folder", type=Path, help="model folder written by `export=` or `save_pretrained`")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper export`."""
    parser.add_argument("model", type=Path, help="folder of a run or of an exported model")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("overrides", nargs="*", metavar="decode.KEY=VALUE", help="decoding by default")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(16, 8, 4),
        default=16,
        help="of a weight (default: 16); frozen towers stay as they are",
    )
    parser.add_argument(
        "--frozen-too",
        action="store_true",
        help="round frozen towers, too; `certify` then checks the rounded",
    )


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper push`."""
    parser.add_argument("folder", type=Path, help="model folder written by `export=`")
    parser.add_argument("repository", help="user/name on the hub")
    parser.add_argument("--private", action="store_true", help="create the repository as private")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zipper serve` and `zipper web`."""
    parser.add_argument("model", type=Path, help="folder of a run or of an exported model (assets/zipped)")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    add_number(parser, "--port", 8000, "port", least=0, most=65535)
    add_number(parser, "--batch", 16, "requests generated together")
    add_number(parser, "--waiting", 64, "requests that wait; more are refused with 429")
    add_number(parser, "--megabytes", 25.0, "largest body of a request", least=0, most=100_000)
    add_number(parser, "--seconds", 30.0, "longest pause within a body", least=0)


class _AppendPrompt(argparse.Action):
    def __call__(self, parser: Any, space: argparse.Namespace, value: Any, option: str | None = None) -> None:
        kind = {"--text": "text", "--audio": "speech"}.get(option or "")
        if kind is None:
            kind, equals, value = value.partition("=")
            if not equals:
                parser.error(f"--given {kind}: write MODALITY=INPUT, such as --given text=hello")
        setattr(space, self.dest, [*(getattr(space, self.dest) or []), (kind, value)])
