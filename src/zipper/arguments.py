"""The words that `zipper generate` takes. Light: `--help` loads no model code."""

import argparse
from pathlib import Path
from typing import Any

USAGE = """examples:
  zipper generate assets/zipped --text "julia carried thirty five green buttons" -o julia.wav
  zipper generate assets/zipped --audio julia.wav
  zipper generate build/runs/joint --audio julia.wav --then text speech -o again.wav
  zipper generate assets/zipped --batch sentences.tsv -o spoken      (columns: id, and text or audio)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
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
    parser.add_argument("--text", action=_Given, dest="given", metavar="WORDS", help="text to go on from")
    parser.add_argument("--audio", action=_Given, dest="given", metavar="FILE", help="speech to go on from")
    parser.add_argument("--batch", type=Path, metavar="FILE", help=".tsv or .jsonl: id, and text or audio")
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


class _Given(argparse.Action):
    def __call__(self, parser: Any, space: argparse.Namespace, value: Any, option: str | None = None) -> None:
        kind = "text" if option == "--text" else "speech"
        setattr(space, self.dest, [*(getattr(space, self.dest) or []), (kind, value)])
