"""Section on chains: WER of chains and of single tasks, from results/chains/NAME-TASK.json."""

from pathlib import Path

from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import read_tasks

TASKS = {"tts": "text>speech", "speech-text-speech": "speech>text>speech", "asr": "speech>text",
         "text-speech-text": "text>speech>text"}  # fmt: skip


def chains(folder: Path) -> str:
    """A row for each model; empty without results. folder: results/chains."""
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
        f"WER of the last segment on {first['utterances']} {first['split']} utterances. In brackets: share "
        "of chains in which every segment ends with EOS. Each segment is generated from the one before it. "
        f"ASR scorer of speech: {first['judge']}. *From waveform*: the speech of text>speech>text is decoded "
        "to a waveform, encoded again, and transcribed by the same model."
    )
    head = ["model", "seed", "steps", TASKS["tts"], TASKS["speech-text-speech"], TASKS["asr"],
            TASKS["text-speech-text"], "from waveform"]  # fmt: skip
    commands = [tasks["tts"]["command"] for tasks in found.values()]
    return section("Chains", text, table(head, rows), commands)
