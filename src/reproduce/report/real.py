"""Section on real corpora and external text towers, from results/real/*.json."""

from pathlib import Path

from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import Result, read_folder


def real(folder: Path) -> str:
    """ASR on other data or with other text towers, and the speed of encoding. folder: results/real."""
    found = read_folder(folder)
    runs = [one for one in found.values() if one.get("task") == "asr"]
    codec_results = {one["name"]: one for one in found.values() if one.get("task") == "codec"}
    parts = [recognition(runs, codec_results)] if runs else []
    if encoding := found.get("encoding"):
        parts.append(encoded(encoding))
    return "\n".join(parts)


def recognition(runs: list[Result], codec_results: dict[str, Result]) -> str:
    """A row for each run. codec_results: by run name, ASR scores of its recordings and their resynthesis."""
    rows = []
    for one in runs:
        scored = codec_results.get(one["name"])
        parts = ", ".join(f"{name} {percent(part['wer'])}" for name, part in one.get("by_subset", {}).items())
        rows.append([
            one["name"],
            one["config"]["data"]["corpus"],
            f"{one['parameters_total'] / 1e6:.1f} M",
            f"{one['parameters_trained'] / 1e6:.1f} M",
            str(one["steps"]),
            f"{one['wall_seconds'] / 60:.0f} min, {one['threads']} thread(s)",
            f"{one['utterances']} / {one['words']:,}",
            percent(one["wer"]) + (f" ({parts})" if parts else ""),
            percent(one["shuffled_wer"], 0) if "shuffled_wer" in one else "",
            f"{percent(scored['rows'][0]['wer'])} / {percent(scored['rows'][1]['wer'])}" if scored else "",
            f"`{one['commit']}`",
        ])  # fmt: skip
    text = (
        "ASR with an external language model as the frozen text tower (SmolLM2-135M-Instruct, from a 4-bit "
        "GGUF file, zipped to the shipped speech tower), on the synthetic corpus and on a sample of real "
        "LibriSpeech: 202 training utterances of two speakers, five speakers of test-other for testing. The "
        "codec was trained on one synthetic voice. The sample shows that the commands run on the corpus as "
        "published; an hour of speech is too little to learn ASR. *ASR scorer*: Whisper tiny.en on the "
        "recordings, and on their codec resynthesis."
    )
    head = ["run", "corpus", "parameters", "trained", "steps", "training", "test utterances / words", "WER",
            "WER, mismatched audio", "ASR scorer on recordings / resynthesis", "commit"]  # fmt: skip
    commands = [*runs, *codec_results.values()]
    return section(
        "Real corpora, and an external text tower",
        text,
        table(head, rows),
        [c["command"] for c in commands],
    )


def encoded(result: Result) -> str:
    """Speed of encoding, as ratios within one run."""
    figures = result["figures"]
    rows = [
        ["the codec in a bare loop", f"{figures['bare']:g} hours per hour", ""],
        [
            "`zipper prepare`, one process",
            f"{figures['one']:g} hours an hour",
            f"{figures['one_to_bare']:.2f} x bare",
        ],
        [
            "`zipper prepare`, two processes",
            f"{figures['two']:g} hours an hour",
            f"{figures['two_to_one']:.2f} x one",
        ],
    ]
    text = (
        f"encodec_24khz at 1.5 kbps with random weights, {result['utterances']} utterances, one thread per "
        "process, measured one after the other. `zipper prepare` also reads, resamples, batches and writes."
    )
    return section("Encoding", text, table(["what", "speed", "ratio"], rows), [result["command"]])
