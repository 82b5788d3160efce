"""The paper's claims, each with a rule that the results of the comparison and the ablations decide."""

import statistics
from pathlib import Path
from typing import NamedTuple

from reproduce.report.ablations import Found, read_results, sweeps
from reproduce.report.markdown import section, table
from reproduce.report.runs import NAMES, Runs, against, difference_text, paired, read_runs, read_tasks
from zipper.evaluation.significance import Comparison

PAR = 0.01  # a difference of WER within which two models are on par
Row = list[str]  # claim, verdict, evidence


class SweepClaim(NamedTuple):
    """A claim about one point of a grid and the one it is compared with. expected: better, worse, or open,
    which is on par."""

    claim: str
    grid: str
    task: str
    one: str
    other: str
    expected: str


FIGURE_4 = [
    SweepClaim("Speech needs the text tower's input projection (Figure 4a)", "projections", "tts", "no text",
          "all", "worse"),
    SweepClaim("Speech does without the speech tower's (Figure 4a)", "projections", "tts", "no speech", "all",
          "open"),
    SweepClaim("Recognition does without both (Figure 4a)", "projections", "asr", "none", "all", "open"),
    SweepClaim("One zip recognises as well as four (Figure 4b)", "zips", "asr", "1", "4", "open"),
    SweepClaim("Eight zips speak better than four (Figure 4b)", "zips", "tts", "8", "4", "better"),
]  # fmt: skip


def claims(folder: Path) -> str:
    """Held, not held or not decided, one line each, with our settings and with the paper's own; those whose
    models have not run are left out. folder: results."""
    grid = {one.name: read_results(one, folder / "ablations") for one in sweeps()}
    ours = of_runs(read_runs(folder / "compare"))
    ours += little_data(grid.get("aligned-data", {}))
    ours += [row for one in FIGURE_4 if (row := figure_4(one, grid.get(one.grid, {})))]
    papers = {row[0]: row[1:] for row in of_runs(read_papers(folder / "longer"))}
    if not ours:
        return ""
    text = (
        "*Held* or *not held* where p < 0.05 in the paired test and the whole interval lies on one side, "
        f"over all seeds; on par is also what lies within {100 * PAR:.0f} point with its whole interval. "
        "*Our settings*: the runs above, which differ from the paper's in the zips' time prior, open gates, "
        "whitening, codebook weights, and hidden spans or a loss on the prompt, after 2,000 steps. *The "
        "paper's own* (`configs/paper.yaml`): one seed of 12,000 steps, and the Single Decoder that was "
        "trained as long, with our codebook weights and without a loss on its prompt; empty where it was not "
        "asked. On this corpus of one synthetic voice: nothing here speaks about LibriSpeech."
    )
    rows = [[*row, *papers.get(row[0], ["", ""])] for row in ours]
    head = ["claim", "our settings", "evidence", "the paper's own settings", "evidence"]
    return section("The paper's claims", text, table(head, rows), [])


def of_runs(runs: Runs) -> list[Row]:
    """What the models of a comparison say."""
    single = "single-decoder"
    rows = [
        *[
            on_par(f"Recognition on par with a frozen text tower ({NAMES[model]})", runs, model)
            for model in ("zipper-frozen", "zipper")
        ],
        better("Speech better than the Single Decoder's, speech tower unfrozen", runs, "zipper", single),
        better("Speech better with the speech tower unfrozen than frozen", runs, "zipper", "zipper-frozen"),
        long_and_short(runs),
        preserved(runs),
    ]
    return [row for row in rows if row]


def read_papers(folder: Path) -> Runs:
    """Zipper with the paper's own settings, and the Single Decoder beside it. folder: results/longer."""
    runs: Runs = {}
    for model, name in (("single-decoder", "single-decoder"), ("zipper", "paper")):
        if found := read_tasks(folder, name, ("asr", "tts"), utterances=True):
            runs[model] = {task: [result] for task, result in found.items()}
    return runs


def on_par(claim: str, runs: Runs, model: str) -> Row | None:
    """Recognition not worse than the Single Decoder's."""
    found = against(runs, "asr", model, "single-decoder")
    if found is None:
        return None
    near = max(-found.low, found.high) < PAR
    words = {"better": "held: better", "worse": "not held: worse", "open": "not decided"}
    word = "held" if near and found.verdict() != "better" else words[found.verdict()]
    return [claim, word, difference_text(found)]


def better(claim: str, runs: Runs, model: str, other: str) -> Row | None:
    """Speech better than another model's."""
    found = against(runs, "tts", model, other)
    words = {"better": "held", "worse": "not held", "open": "not decided"}
    return [claim, words[found.verdict()], difference_text(found)] if found else None


def long_and_short(runs: Runs) -> Row | None:
    """Figure 2, told by the longest and the shortest third of the sentences."""
    ends = by_ends(runs)
    if ends is None:
        return None
    short, long = ends
    word = {
        ("worse", "better"): "held",
        ("better", "better"): "not held: better on both",
        ("worse", "worse"): "not held: worse on both",
        ("better", "worse"): "not held: the other way round",
    }.get((short.verdict(), long.verdict()), "not decided")
    evidence = f"shortest third: {difference_text(short)}; longest third: {difference_text(long)}"
    return ["Speech better on long sentences, worse on short ones", word, evidence]


def by_ends(runs: Runs) -> tuple[Comparison, Comparison] | None:
    """Zipper against the Single Decoder in speech, on the shortest and the longest third of the sentences."""
    ours, theirs = (runs.get(model, {}).get("tts", []) for model in ("zipper", "single-decoder"))
    if not ours or not theirs:
        return None
    lengths = sorted((len(one["reference"]), one["id"]) for one in ours[0]["per_utterance"])
    third = len(lengths) // 3
    found = []
    for part in (lengths[:third], lengths[-third:]):
        ids = {one for _, one in part}
        cut = [
            [{**r, "per_utterance": [u for u in r["per_utterance"] if u["id"] in ids]} for r in side]
            for side in (ours, theirs)
        ]
        found.append(paired(cut[0], cut[1]))
    short, long = found
    return (short, long) if short and long else None


def preserved(runs: Runs) -> Row | None:
    """Text alone: the same perplexity, to the last bit."""
    kept = [
        one["alone"]["text"]
        for model in ("zipper-frozen", "zipper")
        for one in next(iter(runs.get(model, {}).values()), [])
    ]
    if not kept:
        return None
    same = all(one["before"] == one["after"] for one in kept)
    return [
        "Text is preserved",
        "held" if same else "not held",
        f"all {len(kept)} runs of Zipper, table above",
    ]


FEW, ALL = (100, 300, 1000), 12000  # utterances
NEAR_ALL = 0.9  # WER of a Single Decoder that has learnt next to nothing


def little_data(found: Found) -> list[Row]:
    """Figure 3: Zipper against the Single Decoder at each amount of aligned data. Where the Single Decoder
    learns next to nothing from all of it, nothing is decided by what it learns from less."""
    rows, apart, theirs = [], {}, {}
    for size in (30, *FEW, ALL):
        ours, theirs[size] = (
            found.get((model, str(size)), {}).get("asr", []) for model in ("Zipper", "Single Decoder")
        )
        apart[size] = paired(ours, theirs[size])
    told = {size: one for size, one in apart.items() if one is not None}
    rates = {
        size: statistics.fmean(one["wer"] for one in several) for size, several in theirs.items() if several
    }
    learns = rates.get(ALL, 1.0) < NEAR_ALL
    at_all = f"the Single Decoder's WER with all {ALL:,}: {rates[ALL]:.1%}" if ALL in rates else ""
    if all(size in told for size in FEW):
        verdicts = {told[size].verdict() for size in FEW}
        lost = all(rates[size] > NEAR_ALL for size in FEW)
        better = {"better": "held" if lost else "not held: the Single Decoder learns, too"}
        word = better.get("".join(verdicts), "not held" if "worse" in verdicts else "not decided")
        evidence = "; ".join(
            [*(f"{size:,} utterances: {difference_text(told[size])}" for size in FEW), at_all]
        )
        claim = f"Little data suffices, where the Single Decoder stays above {NEAR_ALL:.0%} (Figure 3)"
        rows.append([claim, word if learns else "not decided", evidence])
    if 30 in told:
        words = {"worse": "held", "better": "not held: better", "open": "not decided"}
        word = words[told[30].verdict()] if learns else "not decided"
        claim = "With next to none, Zipper is the worse one (Figure 3)"
        rows.append([claim, word, f"30 utterances: {difference_text(told[30])}; {at_all}"])
    return [[claim.replace("%", " %"), word, evidence.replace("%", " %")] for claim, word, evidence in rows]


def figure_4(point: SweepClaim, found: Found) -> Row | None:
    """A point of a grid against another one."""
    one, other = (found.get((label,), {}).get(point.task, []) for label in (point.one, point.other))
    apart = paired(one, other)
    if apart is None:
        return None
    verdict = apart.verdict()
    if point.expected == "open":
        on_a_par = max(-apart.low, apart.high) < PAR
        words = {"better": "held: better", "worse": "not held: worse", "open": "not decided"}
        word = "held" if on_a_par and verdict != "better" else words[verdict]
    else:
        word = "held" if verdict == point.expected else "not decided" if verdict == "open" else "not held"
    return [point.claim, word, f"{point.one} against {point.other}: {difference_text(apart)}"]
