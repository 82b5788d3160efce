"""What a training ends with: samples, times, where everything lies."""

from pathlib import Path
from typing import Any

SHOWN = 5  # utterances of each task


def summary_text(results: dict[str, dict[str, Any]], run: Path) -> str:
    """Several lines to print: the first utterances of each task, seconds of each stage, files of the run."""
    lines: list[str] = []
    for task, result in results.items():
        if "per_utterance" not in result:
            continue
        lines += [f"{task}: the first {SHOWN} of {result['utterances']} {result['split']} utterances"]
        for one in result["per_utterance"][:SHOWN]:
            lines += [
                f"  {one['id']}  {one['errors']} of {one['words']} words wrong",
                f"    reference  {one['reference']}",
                f"    hypothesis {one['hypothesis'] or '(empty)'}",
            ]
        lines += [""]
    times = next(iter(results.values()))["stage_seconds"]
    lines += ["time"]
    lines += [f"  {stage:<10} {seconds:7.1f} s" for stage, seconds in times.items()]
    lines += [f"  {'total':<10} {sum(times.values()):7.1f} s", "", "files"]
    meaning = {
        "asr.json": "recognition: every figure; asr.utterances.jsonl.xz: every utterance",
        "tts.json": "speech: every figure; tts.utterances.jsonl.xz: every utterance",
        "loss.json": "every figure",
        "speech-text-speech.json": "recognised, then spoken again: every figure; beside it every utterance",
        "text-speech-text.json": "spoken, then recognised: every figure; beside it every utterance",
        "samples": "speech to listen to, and its pictures",
        "figures": "learning curve, gates, where the zips look",
        "metrics.csv": "what was logged",
        "checkpoints/best.ckpt": "the model: python -m zipper generate takes the run folder",
        "config.yaml": "all settings: python -m zipper evaluate takes it",
    }
    lines += [f"  {run / name}  {text}" for name, text in meaning.items() if (run / name).exists()]
    if (run / "wandb").is_dir():
        lines += [f"  W&B, once logged in: wandb sync {run}/wandb/offline-run-*"]
    return "\n".join(lines) + "\n"
