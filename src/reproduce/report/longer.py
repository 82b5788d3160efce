"""Section on longer training of the comparison's models and of the paper's settings."""

from pathlib import Path

from reproduce.report.ablations import TASKS
from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import NAMES, Result, read_tasks
from zipper.evaluation.plot_style import line, panels, save, styled

LABELS = {
    "joint": "Zipper",
    "paper": "Zipper, the paper's settings",
    "paper-2e-3": "Zipper, the paper's settings at our learning rate",
    "single-decoder": NAMES["single-decoder"],
    "single-decoder-speech": NAMES["single-decoder-speech"],
}


def longer(folder: Path) -> str:
    """A row for each finished run; empty with fewer than two. folder: results."""
    found = _read(folder)
    if len(found) < 2:  # the shipped model has its own section
        return ""
    rows = []
    for name, tasks in found.items():
        asr, tts = (tasks[task] for task in TASKS)
        unimodal = asr["alone"]["text"]
        rows.append([
            LABELS[name], f"{asr['config']['train']['lr']:g}", *_on_the_way(asr, (1999, 5999)),
            percent(asr["wer"]), percent(tts["wer"]), f"{unimodal['before']:.2f} / {unimodal['after']:.2f}",
            str(asr["seed"]), f"`{asr['commit']}`",
        ])  # fmt: skip
    steps = sorted({tasks["asr"]["steps"] for tasks in found.values()})
    text = (
        f"ASR and TTS in one model, {' or '.join(f'{one:,}' for one in steps)} steps instead of the "
        "comparison's 2,000, one seed, test. The first run is `configs/joint.yaml`, with a next-modality "
        "head, dropout in the speech tower, and the checkpoint with the best dev WER; the others use their "
        "last checkpoint. **The conditions are not equal, and favour the first run**: its codebook weights, "
        "history masking, whitening and dropout were tuned in runs of 5,000 to 12,000 steps (LOG.md). The "
        "decoders use the training objective chosen on dev after 1,000 steps (no history masking, or a loss "
        "on the prompt), other dropout, and their last checkpoint.\n\n![Dev WER over the "
        "steps](reports/figures/longer.svg)"
    )
    head = ["model", "lr", "ASR WER on dev, 2,000 steps", "6,000 steps", "ASR WER", "TTS WER vs reference",
            "text perplexity before / after", "seed", "commit"]  # fmt: skip
    commands = [tasks["asr"]["command"] for tasks in found.values()]
    return section("Longer training (12,000 steps)", text, table(head, rows), commands)


@styled
def draw_longer(folder: Path, figures: Path) -> list[Path]:
    """Draws longer: dev WER of both tasks over the steps. folder: results."""
    found = _read(folder)
    if len(found) < 2:
        return []
    figure, axes = panels(1, len(TASKS), (5.5, 3.6))
    for panel, (task, title) in zip(axes, TASKS.items(), strict=True):
        for index, (name, tasks) in enumerate(found.items()):
            curve = tasks[task]["curves"][f"dev/{task}_wer"]
            steps, rates = [step + 1 for step, _ in curve], [[100 * rate] for _, rate in curve]
            line(panel, index, steps, rates, LABELS[name])
        panel.set(title=title, xlabel="step", ylabel="dev WER (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return [save(figure, figures / "longer")]


def _read(folder: Path) -> dict[str, dict[str, Result]]:
    """Results by name and task, in the order of LABELS; skips a run without both tasks."""
    found: dict[str, dict[str, Result]] = {}
    for name in LABELS:
        inside = folder if name == "joint" else folder / "longer"
        if len(tasks := read_tasks(inside, name, TASKS)) == len(TASKS):
            found[name] = tasks
    return found


def _on_the_way(result: Result, steps: tuple[int, ...]) -> list[str]:
    """Dev WER at some steps (counted from 0)."""
    curve = dict(result["curves"]["dev/asr_wer"])
    return [percent(curve[step]) for step in steps]
