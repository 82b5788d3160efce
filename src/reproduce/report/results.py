"""`zipper report`: writes RESULTS.md and its figures. RESULTS.md.j2 is its text; each block is a section."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reproduce import ROOT
from reproduce.report import tables
from reproduce.report.bake_off import FLAT, LITTLE, SWEEPS, BakeOff
from reproduce.report.choosing import against, check_equal_terms, difference_text, paired, rate
from reproduce.report.claims import PAR, claims
from reproduce.report.plots import draw
from reproduce.report.records import SAID, Result, Results, Runs, percent
from reproduce.three_towers import TRANSCRIBED
from zipper.config import read_json
from zipper.evaluation.result_archive import pack
from zipper.evaluation.result_file import UTTERANCES
from zipper.evaluation.significance import RESAMPLES, ZEROS

# Folders of many files each.
SWEPT = (
    "ablations", "bake-off", "bake-off-search", "bake-off-synthetic", "bake-off-synthetic-search", "compare",
    "longer", "precision", "search",
)  # fmt: skip

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
)  # fmt: skip
ENVIRONMENT.filters |= {"percent": percent, "millions": tables.millions, "f": format}
ENVIRONMENT.filters["difference"] = difference_text
ENVIRONMENT.filters["without_eos"] = lambda one: 1 - one["stopped"].get("stop", 0) / one["utterances"]
ENVIRONMENT.tests["point_of"] = lambda label, found: (label,) in found
ENVIRONMENT.tests["recipe"] = lambda name: name == "asr" or name.startswith("asr-seed")
ENVIRONMENT.tests["has_rate"] = lambda name: "-lr" in name
ENVIRONMENT.tests["unchanged"] = lambda ends: all(one["before"] == one["after"] for one in ends)
ENVIRONMENT.globals |= {
    "mean": statistics.fmean, "spread": tables.spread, "score_text": tables.score_text, "rate": rate,
    "against": against, "paired": paired, "claims": claims, "tables": tables, "said": SAID, "PAR": PAR,
    "bake_off": BakeOff.of, "BAKE_OFFS": SWEEPS, "FLAT": FLAT, "LITTLE": LITTLE,
    "RESAMPLES": RESAMPLES, "ZEROS": ZEROS, "TRANSCRIBED": TRANSCRIBED,
}  # fmt: skip


def report() -> tuple[Path, str]:
    """Writes RESULTS.md and its figures, and packs results of sweeps, and utterances. Returns its path, and
    the summary for README.md."""
    kept = ROOT / "results"
    swept = [one for of in SWEPT for one in kept.glob(f"{of}/**/*.json")]
    pack([*kept.glob(f"*/**/*{UTTERANCES}"), *swept])
    results, file = Results(ROOT / "results"), ROOT / "RESULTS.md"
    results.check_sweeps()
    draw(results, ROOT / "reports" / "figures")
    file.write_text(render(results), encoding="utf-8")
    return file, in_short(results)


def render(results: Results) -> str:
    """Content of RESULTS.md; sections without result files are left out."""
    return ENVIRONMENT.get_template("RESULTS.md.j2").render(_values(results)).rstrip() + "\n"


def section(name: str, results: Results) -> str:
    """One section of RESULTS.md: a block of the template. Empty without its result files."""
    template = ENVIRONMENT.get_template("RESULTS.md.j2")
    return "".join(template.blocks[name](template.new_context(_values(results))))


def in_short(results: Results) -> str:
    """Summary of the paper's Tables 1 and 2, for `zipper report` and README.md; empty without runs."""
    return ENVIRONMENT.get_template("in_short.md.j2").render(_values(results))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def commands(results: Iterable[Result]) -> str:
    """Commands that reproduce results, as a block of code."""
    return "".join(f"    {one['command']}\n" for one in results)


def _values(results: Results) -> dict[str, Any]:
    def compared() -> Runs:
        runs = results.compared()
        if runs:
            check_equal_terms(runs)
        return runs

    infos = {file.parent.name: read_json(file) for file in sorted((ROOT / "assets").glob("*/tower.json"))}
    towers = {name: info for name, info in infos.items() if "perplexity" in info}
    return {"results": results, "compared": compared, "towers": towers, "table": table, "commands": commands}
