"""Chains beside their pairs: what a further hop costs, from results/chains/NAME-TASK.json."""

from pathlib import Path

from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import read_tasks

TASKS = {"tts": "text>speech", "speech-text-speech": "speech>text>speech", "asr": "speech>text",
         "text-speech-text": "text>speech>text"}  # fmt: skip


def chains(folder: Path) -> str:
    """A row for each model; empty where none was evaluated. folder: results/chains."""
    ending = "-speech-text-speech.json"
    names = [file.name.removesuffix(ending) for file in sorted(folder.glob(f"*{ending}"))]
    found = {name: one for name in names if len(one := read_tasks(folder, name, TASKS)) == len(TASKS)}
    if not found:
        return ""
    rows = []
    for name, tasks in found.items():
        speech, back = tasks["speech-text-speech"], tasks["text-speech-text"]
        rows.append([
            name, str(speech["seed"]), f"{speech['steps']:,}",
            percent(tasks["tts"]["wer"]), f"{percent(speech['wer'])} ({percent(speech['share_ended'])})",
            percent(tasks["asr"]["wer"]), f"{percent(back['wer'])} ({percent(back['share_ended'])})",
            percent(back["reread_wer"]),
        ])  # fmt: skip
    first = next(iter(found.values()))["tts"]
    text = (
        f"WER of the last segment on {first['utterances']} {first['split']} utterances, and in brackets the "
        "share of chains in which the model ended every segment by itself. Each hop reads the segment before "
        f"it alone. Speech is scored through {first['judge']}; *again*: the speech of text>speech>text as a "
        "recording, decoded, encoded, and recognised by the same model."
    )
    head = ["model", "seed", "steps", TASKS["tts"], TASKS["speech-text-speech"], TASKS["asr"],
            TASKS["text-speech-text"], "again"]  # fmt: skip
    commands = [tasks["tts"]["command"] for tasks in found.values()]
    return section("Chains", text, table(head, rows), commands)
