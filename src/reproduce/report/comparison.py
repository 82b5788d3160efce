"""The paper's Tables 1 and 2 with our results, from results/compare/MODEL-seedN-TASK.json.

Shows the WER over seeds, paired tests against the Single Decoder, FLOPs, and unimodal perplexity.
"""

import statistics
from pathlib import Path

from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import (
    BASELINES,
    NAMES,
    PAPER,
    Result,
    Runs,
    against,
    check_equal_terms,
    difference_text,
    read_runs,
)
from reproduce.report.tuning import tuning
from zipper.evaluation.significance import RESAMPLES, ZEROS


def comparison(folder: Path) -> str:
    """Sections on the comparison in RESULTS.md; empty without results."""
    runs = read_runs(folder / "compare")
    if not runs:
        return ""
    check_equal_terms(runs)
    parts = [
        recognition(runs),
        speaking(runs),
        forgetting(runs),
        tuning(folder),
    ]
    return "\n".join(part for part in parts if part)


def in_short(folder: Path) -> str:
    """Summary of both tables, for `zipper report` and README.md; empty without runs."""
    runs, rows = read_runs(folder / "compare", utterances=False), []
    for model, tasks in runs.items():
        asr, tts = tasks.get("asr", []), tasks.get("tts", [])
        text = [one["alone"]["text"] for one in asr or tts]
        rows.append(
            [
                NAMES[model],
                spread(asr, "wer")[0] if asr else "",
                f"{spread(tts, 'wer')[0]} / {spread(tts, 'target_wer')[0]}" if tts else "",
                f"{text[0]['before']:.2f} / {statistics.fmean(one['after'] for one in text):.2f}",
                PAPER["asr"].get(model, ""),
                PAPER["tts"].get(model, ""),
            ]
        )
    head = ["model", "ASR WER", "TTS WER vs reference / resynthesis", "text perplexity before / after"]
    head += ["paper: ASR clean / other", "paper: TTS gold / target"]
    return table(head, rows) if rows else ""


def recognition(runs: Runs) -> str:
    """Section for the paper's Table 1 (ASR)."""
    if not any("asr" in tasks for tasks in runs.values()):
        return ""
    first = _first(runs, "asr")
    train = first["config"]["train"]
    rows = []
    for model, tasks in runs.items():
        if "asr" not in tasks:
            continue
        several = tasks["asr"]
        one = several[0]
        flops = one["flops_per_token"]
        rows.append(
            [
                NAMES[model],
                f"{one['parameters_total'] / 1e6:.2f} M",
                f"{one['parameters_trained'] / 1e6:.2f} M",
                f"{flops['forward'] / 1e6:.2f} M / {flops['training'] / 1e6:.2f} M",
                f"{one['config']['train']['lr']:g}",
                *spread(several, "wer"),
                *[difference_text(against(runs, "asr", model, b)) for b in BASELINES],
                PAPER["asr"].get(model, ""),
            ]
        )
    text = (
        f"ASR and TTS in one model, mixed by number of utterances (1 : {train['tasks']['tts']:g}), "
        f"{train['steps']:,} steps of {train['tokens']:,} padded tokens. For a given seed, every model has "
        f"the same examples in the same order; *each seed* lists the seeds from 0. {first['checkpoint']} "
        f"checkpoint, {first['decoding']}, {first['utterances']} test utterances. *Parameters*: all "
        "parameters, and *trained*. *FLOPs per token*: forward / forward and backward, computed from shapes "
        "and lengths by the paper's formula, with our widths and heads (`models/flops.py`). Steps are equal, "
        "sizes are not. Each difference to a baseline is in points of WER, with the 95 % interval of a "
        f"paired bootstrap ({RESAMPLES:,} resamples of the utterances) and p of a two-sided Wilcoxon "
        f"signed-rank test on the utterances' error rates, both on the mean over seeds; {ZEROS}. *Paper*: "
        "Tiny and Tiny/128M on LibriSpeech test-clean / test-other; * better, ** worse than its baseline, p "
        "< 0.05.\n\n![Both tasks at a glance](reports/figures/comparison.svg)"
    )
    head = [
        "model",
        "parameters",
        "trained",
        "FLOPs per token",
        "lr",
        "WER, mean ± deviation",
        "each seed",
    ]
    head += [f"vs {name}" for name in BASELINES.values()]
    return section(
        "Zipper against the Single Decoder: ASR (paper, Table 1)", text,
        table([*head, "paper, WER (%)"], rows), [one["command"] for one in _commands(runs)],
    )  # fmt: skip


def speaking(runs: Runs) -> str:
    """Section for the paper's Table 2 (TTS)."""
    if not any("tts" in tasks for tasks in runs.values()):
        return ""
    rows, left_out = [], 0
    for model, tasks in runs.items():
        if "tts" not in tasks:
            continue
        several = tasks["tts"]
        by_target = against(runs, "tts", model, next(iter(BASELINES)), "target_errors")
        left_out = max(left_out, by_target.left_out if by_target else 0)
        gold, target = spread(several, "wer"), spread(several, "target_wer")
        rows.append(
            [
                NAMES[model], f"{gold[0]} / {target[0]}", gold[1],
                percent(statistics.fmean(share_without_eos(one) for one in several)),
                *[difference_text(against(runs, "tts", model, b)) for b in BASELINES],
                difference_text(by_target),
                PAPER["tts"].get(model, ""),
            ]
        )  # fmt: skip
    first = _first(runs, "tts")
    rows.append(["codec resynthesis (topline)", percent(first["oracle_wer"]), "", "", "", "", "", "6.00"])
    rows.append(["recordings", percent(first["original_wer"]), "", "", "", "", "", ""])
    text = (
        f"The same models synthesize {first['utterances']} test sentences. ASR scorer: {first['judge']}; "
        f"normaliser {first['normaliser']} on both sides. *vs reference* (the paper's gold): WER of the ASR "
        "transcript against the text; *vs resynthesis* (the paper's target): against the ASR transcript of "
        "the codec's resynthesis of the recording (paper 4.1.4). Tests as above, vs reference unless "
        f"stated{_without(left_out)}. *Paper*: LibriTTS test-clean, * p < 0.01.\n\n![TTS WER by length: "
        "cumulative, and in bins](reports/figures/wer-by-length.svg)"
    )
    head = ["model", "WER vs reference / resynthesis", "each seed, vs reference", "without EOS"]
    head += [f"vs {name}" for name in BASELINES.values()]
    head += ["vs the Single Decoder, vs resynthesis", "paper, gold / target (%)"]
    return section("Zipper against the Single Decoder: TTS (paper, Table 2)", text, table(head, rows), [])


def forgetting(runs: Runs) -> str:
    """Unimodal perplexity of each modality, before and after training."""
    rows = []
    for model, tasks in runs.items():
        several = next(iter(tasks.values()))
        row = [NAMES[model]]
        for name in ("text", "speech"):
            ends = [one["alone"][name] for one in several]
            before, after = ends[0]["before"], [one["after"] for one in ends]
            row.append("" if before is None else f"{before:.2f}")
            same = all(one["before"] == one["after"] for one in ends)
            row.append("identical" if same else f"{statistics.fmean(after):.2f}")
        rows.append(row)
    text = (
        "Unimodal perplexity: per scored token of test documents with a single modality, within the "
        "vocabulary of that modality, before and after training on both; mean over seeds. *Identical*: bit "
        "for bit. A decoder without a figure has no speech pre-training."
    )
    head = ["model", "text, before", "text, after", "speech, before", "speech, after"]
    return section("Unimodal perplexity before and after training", text, table(head, rows), [])


def share_without_eos(one: Result) -> float:
    """Share of sentences without EOS: at the length limit, or with repetition."""
    return 1 - one["stopped"].get("end", 0) / one["utterances"]


def _without(left_out: int) -> str:
    if not left_out:
        return ""
    return (
        f"; vs resynthesis without {left_out} sentences whose targets differ (scored on different machines)"
    )


def spread(several: list[Result], key: str) -> tuple[str, str]:
    """Mean with standard deviation over seeds, and the value of each seed."""
    values = [one[key] for one in several]
    mean = percent(statistics.fmean(values))
    if len(values) > 1:
        mean += f" ± {100 * statistics.stdev(values):.1f}"
    return mean, ", ".join(f"{100 * value:.1f}" for value in values)


def _first(runs: Runs, task: str) -> Result:
    return next(tasks[task][0] for tasks in runs.values() if task in tasks)


def _commands(runs: Runs) -> list[Result]:
    return [next(iter(tasks.values()))[0] for tasks in runs.values()]
