"""The words that commands take which have no config alone. Light: `--help` loads no model code."""

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
    parser.add_argument(
        "--audio", action=_Given, dest="given", metavar="FILE", help="speech to go on from, instead"
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


def add_others(commands: Any, docs: dict[str, str]) -> None:
    """The commands that take no config of settings, or more than that. docs: what each is for."""
    one = commands.add_parser("compare", help=docs["compare"], description=docs["compare"])
    for side in ("a", "b"):
        one.add_argument(
            side, metavar=f"{side.upper()}.json", help="result file, or a quoted pattern of several (seeds)"
        )
    one = commands.add_parser("import-gguf", help=docs["import-gguf"], description=docs["import-gguf"])
    one.add_argument("file", type=Path, help="the .gguf")
    one.add_argument("folder", type=Path, help="new, or empty")
    one = commands.add_parser("ablate", help=docs["ablate"], description=docs["ablate"])
    one.add_argument("file", type=Path, help="configs/ablations/NAME.yaml")
    one.add_argument("settings", nargs="*", metavar="key=value", help="for all runs")
    one.add_argument("--dry-run", action="store_true", help="list the runs and how far they are")
    one.add_argument("--jobs", type=int, default=1, help="runs at a time, the cores shared (default: 1)")
    one.add_argument("--only", metavar="RUN", help="this one alone, or a pattern: '*-seed0'")
    one.add_argument("--slurm", action="store_true", help="write the grid as a SLURM array")
    one.add_argument("--wandb-sweep", action="store_true", help="write the grid as a W&B sweep")
    one = commands.add_parser("faults", help=docs["faults"], description=docs["faults"])
    one.add_argument("config", type=Path, help="configs/faults.yaml")
    one.add_argument("--times", type=int, default=120, help="faults (default: 120)")
    one.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    one.add_argument("--result", help="file for the table (default: it is printed alone)")
    one = commands.add_parser("dashboard", help=docs["dashboard"], description=docs["dashboard"])
    one.add_argument("--entity", default="", help="W&B user or team (default: that of your key)")
    one.add_argument("--project", default="zipper", help="log.project of the runs (default: zipper)")
    one = commands.add_parser("push", help=docs["push"], description=docs["push"])
    one.add_argument("folder", type=Path, help="what `export=` wrote")
    one.add_argument("repository", help="user/name")
    one.add_argument("--private", action="store_true", help="where it is made anew")


class _Given(argparse.Action):
    def __call__(self, parser: Any, space: argparse.Namespace, value: Any, option: str | None = None) -> None:
        kind = "text" if option == "--text" else "speech"
        setattr(space, self.dest, [*(getattr(space, self.dest) or []), (kind, value)])
