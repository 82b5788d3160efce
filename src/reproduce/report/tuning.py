"""Section on hyperparameter tuning: learning rate and training objective of each compared model."""

from pathlib import Path

from reproduce.report.ablations import TASKS, read_results, shown, sweeps
from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import CHOICES, NAMES, Result, best_choice, best_rate, capped, read_folder

PAPER_RATES = [5e-5, 1e-4, 5e-4, 1e-3]  # the paper's learning rates

SHARED = (
    "The step size (`train.tokens`) and the codebook weights are the same for all four models. Below, the "
    "sweep [step-size](configs/ablations/step-size.yaml) halves the step size and doubles the steps of each "
    "model, and [single-decoder](configs/ablations/single-decoder.yaml) sets equal codebook weights. Zips "
    "are initialised with a time prior (`model.zip.diagonal`, durations of subwords) and whitened states; a "
    "single decoder has no counterpart to these."
)
PICTURES = """![Learning curves of all runs](reports/figures/learning-curves.svg)

![Gates in training](reports/figures/gates.svg)
"""


def tuning(folder: Path) -> str:
    """Both searches and the learning curves; empty without results. folder: results."""
    parts = [one for one in (search(folder / "search"), choices(folder / "ablations")) if one]
    if not parts:
        return ""
    commands = ["make compare-search", f"make ablation-{CHOICES}"]
    text = "\n".join([*parts, SHARED])
    return section("Equal tuning, and learning curves", text, PICTURES, commands)


def search(folder: Path) -> str:
    """Table of the learning-rate search and of further trials. folder: results/search."""
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
                cells[_rate(one)] = score_text(one, bold=_rate(one) == best)
            rows.append([NAMES[model], *cells.values()])
    first = next(iter(searched.values()))
    text = (
        f"ASR WER on {first['utterances']} dev utterances, with the errors of a sentence capped at its "
        f"number of words (and the dev loss of text, in nats), after {first['steps']} steps, a quarter of "
        "the comparison's, seed 0, for the paper's learning rates and higher ones. Bold: rate of the runs "
        "above, which has the lowest WER, or the lowest loss among the rates that do not differ "
        "significantly from it.\n\n"
    )
    head = ["model", *[f"{rate:g}{'' if rate in PAPER_RATES else ' (ours)'}" for rate in rates]]
    tables = table(head, rows)
    if tried:
        other = [[name, score_text(one)] for name, one in tried.items()]
        tables += "\nFurther trials, at the best learning rate (adafactor: at its own):\n\n"
        tables += table(["trial", "WER (loss)"], other)
    return text + tables


def choices(folder: Path) -> str:
    """Table of the training-objective ablation for each model. folder: results/ablations."""
    found = next((read_results(one, folder) for one in sweeps() if one.name == CHOICES), {})
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
        rows.append([shown(model), *cells.values()])
    one = next(iter(found.values()))["asr"][0]
    text = (
        "Training objective: history masking (spans of the target speech are masked from the speech tower; "
        "used in the learning-rate search), no history masking, or a loss on the prompt. Dev WER of ASR / "
        f"TTS, with the errors of a sentence capped at its number of words, after {one['steps']:,} steps, "
        f"seed {one['seed']}. Bold: chosen objective, which has the lowest mean of both, or history masking "
        "if that is significantly better in neither task (paired tests). The runs above use it.\n\n"
    )
    return text + table(["model", *map(shown, labels)], rows)


def score_text(one: Result, bold: bool = False) -> str:
    """Formats WER and dev loss: "**61.3 %** (1.41)"."""
    wer, loss = percent(capped(one)["wer"]), one["curves"]["dev/loss_text"][-1][1]
    return f"{f'**{wer}**' if bold else wer} ({loss:.3f})"


def _rate(one: Result) -> float:
    return one["config"]["train"]["lr"]
