"""The paper's claims, each with a rule that decides it from our results."""

import statistics

from reproduce.report.choosing import against, difference_text, paired
from reproduce.report.records import SAID, Found, Result, Results, Runs
from zipper.evaluation.significance import Comparison

PAR = 0.01  # maximum difference in WER of two models on par
FEW, ALL = (100, 300, 1000), 12000  # utterances
NEAR_ALL = 0.9  # WER above which a Single Decoder counts as untrained
PARITY = "on par"  # expected verdict of a claim of parity
Row = list[str]  # claim, verdict, evidence


def claims(results: Results) -> list[Row]:
    """Claim, then verdict and evidence with our settings and the paper's; skips claims without results."""
    ours = of_runs(results.compared()) + little_data(results.sweep_named("aligned-data"))
    for said in SAID["figure_4"]:
        found = results.sweep_named(said["sweep"])
        a, b = (found.get((said[side],), {}).get(said["task"], []) for side in ("one", "other"))
        if apart := paired(a, b):
            evidence = f"{said['one']} against {said['other']}: {difference_text(apart)}"
            ours.append([said["claim"], verdict(apart, said["expected"]), evidence])
    papers = {row[0]: row[1:] for row in of_runs(results.papers())}
    return [[*row, *papers.get(row[0], ["", ""])] for row in ours]


def verdict(found: Comparison, expected: str) -> str:
    """Verdict on the claim that a comparison is better, worse, or on par (PARITY)."""
    is_so = found.verdict()
    if expected == PARITY and (is_so == "better" or max(-found.low, found.high) >= PAR):
        return {"better": "held: better", "worse": "not held: worse"}.get(is_so, "not decided")
    return "held" if expected in (is_so, PARITY) else "not decided" if is_so == "open" else "not held"


def of_runs(runs: Runs) -> list[Row]:
    """Claims decided by the models of a comparison."""
    rows = [
        [said["claim"], verdict(found, said["expected"]), difference_text(found)]
        for said in SAID["claims"]
        if (found := against(runs, said["task"], said["one"], said["other"]))
    ]
    ours, theirs = (runs.get(model, {}).get("tts", []) for model in ("zipper", "single-decoder"))
    if paired(ours, theirs):
        rows.append(long_and_short(ours, theirs))
    kept = [
        one["alone"]["text"]
        for model in ("zipper-frozen", "zipper")
        for one in next(iter(runs.get(model, {}).values()), [])
    ]
    if kept:
        same = all(one["before"] == one["after"] for one in kept)
        evidence = f"all {len(kept)} runs of Zipper, table above"
        rows.append(["Text is preserved", "held" if same else "not held", evidence])
    return rows


def long_and_short(ours: list[Result], theirs: list[Result]) -> Row:
    """Verdict on Figure 2: TTS on the shortest and on the longest third of the sentences."""
    lengths = sorted((len(one["reference"]), one["id"]) for one in ours[0]["per_utterance"])
    third, found = len(lengths) // 3, []
    for part in (lengths[:third], lengths[-third:]):
        ids = {one for _, one in part}
        cut: list[list[Result]] = [
            [{**one, "per_utterance": [u for u in one["per_utterance"] if u["id"] in ids]} for one in side]
            for side in (ours, theirs)
        ]
        found.append(paired(cut[0], cut[1]))
    word = {
        "worse, better": "held",
        "better, better": "not held: better on both",
        "worse, worse": "not held: worse on both",
        "better, worse": "not held: the reverse",
    }.get(", ".join(one.verdict() for one in found if one), "not decided")
    short, long = map(difference_text, found)
    evidence = f"shortest third: {short}; longest third: {long}"
    return ["TTS better on long sentences, worse on short ones", word, evidence]


def little_data(found: Found) -> list[Row]:
    """Verdicts on Figure 3: Zipper against the Single Decoder by amount of aligned data.

    Undecided if the Single Decoder does not learn from all of the data.
    """
    rows, told, rates = [], {}, {}
    for size in (30, *FEW, ALL):
        ours, theirs = (
            found.get((name, str(size)), {}).get("asr", []) for name in ("Zipper", "Single Decoder")
        )
        if theirs:
            rates[size] = statistics.fmean(one["wer"] for one in theirs)
        if apart := paired(ours, theirs):
            told[size] = apart
    learns = rates.get(ALL, 1.0) < NEAR_ALL
    at_all = f"the Single Decoder's WER with all {ALL:,}: {rates[ALL]:.1%}" if ALL in rates else ""
    if {*FEW} <= {*told}:
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
        words = {"worse": "held", "better": "not held: better"}
        word = words.get(told[30].verdict(), "not decided") if learns else "not decided"
        claim = "With very little aligned data, Zipper is worse (Figure 3)"
        rows.append([claim, word, f"30 utterances: {difference_text(told[30])}; {at_all}"])
    return [[cell.replace("%", " %") for cell in row] for row in rows]
