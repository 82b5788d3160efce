"""What tuned each model of the comparison: its learning rate, and spans hidden, or a loss on the prompt."""

from pathlib import Path

from reproduce.report.ablations import TASKS, grids, read_results
from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import CHOICES, NAMES, Result, best_choice, best_rate, capped, read_folder

GRID = [5e-5, 1e-4, 5e-4, 1e-3]  # the paper's learning rates

SHARED = (
    "The size of the steps (`train.tokens`) and the weights of the codebooks are the same for all four; the "
    "grid [step-size](configs/ablations/step-size.yaml) below asks each of them for steps of half the size, "
    "twice as many, and [single-decoder](configs/ablations/single-decoder.yaml) for codebooks alike. Zips "
    "start with a prior of time (`model.zip.diagonal`, durations of subwords) and "
    "from whitened states; a single decoder has no counterpart to these."
)
PICTURES = """![Learning curves of all runs](reports/figures/learning-curves.svg)

![How far the gates open in training](reports/figures/gates.svg)
"""


def tuning(folder: Path) -> str:
    """The section: both searches, and how the runs learnt; empty without a search. folder: results."""
    parts = [one for one in (search(folder / "search"), choices(folder / "ablations")) if one]
    if not parts:
        return ""
    commands = ["make compare-search", f"make ablation-{CHOICES}"]
    text = "\n".join([*parts, SHARED])
    return section("Equal tuning, and learning curves", text, PICTURES, commands)


def search(folder: Path) -> str:
    """What the learning rates were chosen by, and what else was tried. folder: results/search."""
    found = read_folder(folder, utterances=True)
    tried = {name: one for name, one in found.items() if "-lr" not in name}
    searched = {name: one for name, one in found.items() if "-lr" in name}
    if not searched:
        return ""
    rates = sorted({_rate(one) for one in searched.values()})
    rows = []
    for model in NAMES:
        own = [one for name, one in searched.items() if name.rpartition("-lr")[0] == model]
        if own:
            best, cells = best_rate(own), dict.fromkeys(rates, "")
            for one in own:
                cells[_rate(one)] = told(one, bold=_rate(one) == best)
            rows.append([NAMES[model], *cells.values()])
    first = next(iter(searched.values()))
    text = (
        f"Word errors of recognition on {first['utterances']} dev utterances, those of a sentence capped at "
        f"its words (and the loss of text there, in nats), after {first['steps']} steps, a quarter of the "
        "comparison's, seed 0, for the paper's learning rates and higher ones. In bold what the runs above "
        "were trained with: the lowest WER, or, where others cannot be told from it, the lowest loss among "
        "them.\n\n"
    )
    head = ["model", *[f"{rate:g}{'' if rate in GRID else ' (ours)'}" for rate in rates]]
    tables = table(head, rows)
    if tried:
        other = [[name, told(one)] for name, one in tried.items()]
        tables += "\nTried besides, at the best rate (adafactor: at its own):\n\n"
        tables += table(["what", "WER (loss)"], other)
    return text + tables


def choices(folder: Path) -> str:
    """Spans hidden, nothing hidden, or a loss on the prompt, for each model. folder: results/ablations."""
    found = next((read_results(one, folder) for one in grids() if one.name == CHOICES), {})
    found = {labels: tasks for labels, tasks in found.items() if tasks.keys() == TASKS.keys()}
    if not found:
        return ""
    labels, rows = list(dict.fromkeys(choice for _, choice in found)), []
    for model in dict.fromkeys(model for model, _ in found):
        own = {choice: tasks for (of, choice), tasks in found.items() if of == model}
        best, cells = best_choice(own), dict.fromkeys(labels, "")
        for choice, tasks in own.items():
            rates = " / ".join(percent(capped(tasks[task][0])["wer"]) for task in TASKS)
            cells[choice] = f"**{rates}**" if choice == best else rates
        rows.append([model, *cells.values()])
    one = next(iter(found.values()))["asr"][0]
    text = (
        "What training does besides: spans of a spoken answer are hidden from what predicts it (as when the "
        "rates were searched), nothing is, or there is a loss on what is given, too. Word errors on dev, "
        "those of a sentence capped at its words, "
        f"recognition / speech, after {one['steps']:,} steps, seed {one['seed']}; in bold what the "
        "rule chooses: the lowest mean of both, or spans hidden, where that is better in neither (paired "
        "tests). The runs above were trained with it.\n\n"
    )
    return text + table(["model", *labels], rows)


def told(one: Result, bold: bool = False) -> str:
    """**61.3 %** (1.41)"""
    wer, loss = percent(capped(one)["wer"]), one["curves"]["dev/loss_text"][-1][1]
    return f"{f'**{wer}**' if bold else wer} ({loss:.3f})"


def _rate(one: Result) -> float:
    return one["config"]["train"]["lr"]
