"""What a training ends with: samples, times, where everything lies."""

from pathlib import Path
from typing import Any

SHOWN = 5  # utterances


def summary_text(result: dict[str, Any], run: Path) -> str:
    """Several lines to print: the first recognised utterances, seconds of each stage, files of the run."""
    lines: list[str] = []
    if "per_utterance" in result:
        lines += [f"the first {SHOWN} of {result['utterances']} {result['split']} utterances"]
        for one in result["per_utterance"][:SHOWN]:
            lines += [f"  {one['id']}  {one['errors']} of {one['words']} words wrong"]
            lines += [
                f"    reference  {one['reference']}",
                f"    hypothesis {one['hypothesis'] or '(empty)'}",
            ]
    lines += ["", "time"]
    lines += [f"  {stage:<10} {seconds:7.1f} s" for stage, seconds in result["stage_seconds"].items()]
    lines += [f"  {'total':<10} {sum(result['stage_seconds'].values()):7.1f} s", "", "files"]
    meaning = {
        "result.json": "every figure, and every utterance",
        "predictions.tsv": "reference and hypothesis of every utterance",
        "figures": "learning curve, gates, where the zips look",
        "metrics.csv": "what was logged",
        "checkpoints/best.ckpt": "the model",
        "config.yaml": "all settings: python -m zipper evaluate takes it",
    }
    lines += [f"  {run / name}  {text}" for name, text in meaning.items() if (run / name).exists()]
    if (run / "wandb").is_dir():
        lines += [f"  W&B, once logged in: wandb sync {run}/wandb/offline-run-*"]
    return "\n".join(lines) + "\n"
