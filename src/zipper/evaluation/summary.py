"""Closing summary of a training: samples, times and output files."""

from pathlib import Path

from zipper.evaluation.result_file import Results

SHOWN = 5  # utterances per task


def summary_text(results: Results, run: Path) -> str:
    """Summary text: first utterances of each task, seconds of each stage, files of the run."""
    lines: list[str] = []
    for task, result in results.items():
        if "per_utterance" not in result:
            continue
        lines.append(f"{task}: the first {SHOWN} of {result['utterances']} {result['split']} utterances")
        for one in result["per_utterance"][:SHOWN]:
            lines += [
                f"  {one['id']}  {one['errors']} of {one['words']} words wrong",
                f"    reference  {one['reference']}",
                f"    hypothesis {one['hypothesis'] or '(empty)'}",
            ]
        lines.append("")
    times = next(iter(results.values()))["stage_seconds"]
    lines.append("time")
    lines += [f"  {stage:<10} {seconds:7.1f} s" for stage, seconds in times.items()]
    lines += [f"  {'total':<10} {sum(times.values()):7.1f} s", "", "files"]
    contents = {
        "asr.json": "ASR result; utterances in asr.utterances.jsonl.xz",
        "tts.json": "TTS result; utterances in tts.utterances.jsonl.xz",
        "loss.json": "loss and perplexity",
        "speech-text-speech.json": "result of the chain speech>text>speech",
        "text-speech-text.json": "result of the chain text>speech>text",
        "samples": "generated speech and spectrograms",
        "figures": "learning curve, gates, attention maps",
        "metrics.csv": "logged metrics",
        "checkpoints/best.ckpt": "best checkpoint; use it with python -m zipper generate RUN_FOLDER",
        "config.yaml": "all settings; use it with python -m zipper evaluate",
    }
    lines += [f"  {run / name}  {text}" for name, text in contents.items() if (run / name).exists()]
    if (run / "wandb").is_dir():
        lines += [f"  upload to W&B: wandb sync {run}/wandb/offline-run-*"]
    return "\n".join(lines) + "\n"
