"""The paper's claims, each with a rule that decides it from our results."""

import statistics
from typing import NamedTuple

from reproduce.report.choosing import against, difference_text, paired
from reproduce.report.records import NAMES, Found, Results, Runs
from zipper.evaluation.significance import Comparison

PAR = 0.01  # maximum difference in WER of two models on par
Row = list[str]  # claim, verdict, evidence


class SweepClaim(NamedTuple):
    """Claim about one point of a sweep against another. expected: better, worse, or open (on par)."""

    claim: str
    sweep: str
    task: str
    one: str
    other: str
    expected: str


FIGURE_4 = [
    SweepClaim("TTS needs the text tower's input projection (Figure 4a)", "projections", "tts", "no text",
          "all", "worse"),
    SweepClaim("TTS does not need the speech tower's input projection (Figure 4a)", "projections", "tts",
          "no speech", "all", "open"),
    SweepClaim("ASR needs neither input projection (Figure 4a)", "projections", "asr", "none", "all", "open"),
    SweepClaim("ASR with one zip is on par with four (Figure 4b)", "zips", "asr", "1", "4", "open"),
    SweepClaim("TTS with eight zips is better than with four (Figure 4b)", "zips", "tts", "8", "4", "better"),
]  # fmt: skip


def claims(results: Results) -> list[Row]:
    """Claim, then verdict and evidence with our settings and the paper's; skips claims without results."""
    ours = of_runs(results.compared())
    ours += little_data(results.sweep_named("aligned-data"))
    ours += [row for one in FIGURE_4 if (row := figure_4(one, results.sweep_named(one.sweep)))]
    papers = {row[0]: row[1:] for row in of_runs(results.papers())}
    return [[*row, *papers.get(row[0], ["", ""])] for row in ours]


def of_runs(runs: Runs) -> list[Row]:
    """Claims decided by the models of a comparison."""
    single = "single-decoder"
    rows = [
        *[
            on_par(f"ASR on par with a frozen text tower ({NAMES[model]})", runs, model)
            for model in ("zipper-frozen", "zipper")
        ],
        better("TTS better than the Single Decoder, speech tower unfrozen", runs, "zipper", single),
        better("TTS better with the speech tower unfrozen than frozen", runs, "zipper", "zipper-frozen"),
        long_and_short(runs),
        preserved(runs),
    ]
    return [row for row in rows if row]


def on_par(claim: str, runs: Runs, model: str) -> Row | None:
    """Verdict: ASR on par with the Single Decoder, or better."""
    found = against(runs, "asr", model, "single-decoder")
    if found is None:
        return None
    return [claim, parity(found), difference_text(found)]


def parity(found: Comparison) -> str:
    """Verdict on a claim of parity."""
    if max(-found.low, found.high) < PAR and found.verdict() != "better":
        return "held"
    return {"better": "held: better", "worse": "not held: worse"}.get(found.verdict(), "not decided")


def better(claim: str, runs: Runs, model: str, other: str) -> Row | None:
    """Verdict: TTS better than another model."""
    found = against(runs, "tts", model, other)
    words = {"better": "held", "worse": "not held", "open": "not decided"}
    return [claim, words[found.verdict()], difference_text(found)] if found else None


def long_and_short(runs: Runs) -> Row | None:
    """Verdict on Figure 2, by the longest and the shortest third of the sentences."""
    ends = by_ends(runs)
    if ends is None:
        return None
    short, long = ends
    word = {
        ("worse", "better"): "held",
        ("better", "better"): "not held: better on both",
        ("worse", "worse"): "not held: worse on both",
        ("better", "worse"): "not held: the reverse",
    }.get((short.verdict(), long.verdict()), "not decided")
    evidence = f"shortest third: {difference_text(short)}; longest third: {difference_text(long)}"
    return ["TTS better on long sentences, worse on short ones", word, evidence]


def by_ends(runs: Runs) -> tuple[Comparison, Comparison] | None:
    """TTS of Zipper against the Single Decoder, on the shortest and the longest third of the sentences."""
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
    """Verdict: the text perplexity is unchanged, bit for bit."""
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
NEAR_ALL = 0.9  # WER above which a Single Decoder counts as untrained


def little_data(found: Found) -> list[Row]:
    """Verdicts on Figure 3: Zipper against the Single Decoder by amount of aligned data.

    Undecided if the Single Decoder does not learn from all of the data.
    """
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
        better = {"better": "held" if lost else "not held: the Single Decoder learns too"}
        word = better.get("".join(verdicts), "not held" if "worse" in verdicts else "not decided")
        evidence = "; ".join(
            [*(f"{size:,} utterances: {difference_text(told[size])}" for size in FEW), at_all]
        )
        claim = (
            f"Little aligned data suffices, while the Single Decoder stays above {NEAR_ALL:.0%} (Figure 3)"
        )
        rows.append([claim, word if learns else "not decided", evidence])
    if 30 in told:
        words = {"worse": "held", "better": "not held: better", "open": "not decided"}
        word = words[told[30].verdict()] if learns else "not decided"
        claim = "With very little aligned data, Zipper is worse (Figure 3)"
        rows.append([claim, word, f"30 utterances: {difference_text(told[30])}; {at_all}"])
    return [[claim.replace("%", " %"), word, evidence.replace("%", " %")] for claim, word, evidence in rows]


def figure_4(point: SweepClaim, found: Found) -> Row | None:
    """Verdict on a claim of Figure 4."""
    one, other = (found.get((label,), {}).get(point.task, []) for label in (point.one, point.other))
    apart = paired(one, other)
    if apart is None:
        return None
    if point.expected == "open":
        word = parity(apart)
    else:
        words = {point.expected: "held", "open": "not decided"}
        word = words.get(apart.verdict(), "not held")
    return [point.claim, word, f"{point.one} against {point.other}: {difference_text(apart)}"]
