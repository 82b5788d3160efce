"""`zipper report`: results/*.json to RESULTS.md. Nothing in it is written by hand."""

import statistics
from pathlib import Path
from typing import Any

from reproduce import ROOT
from reproduce.report.ablations import ablations, draw_ablations
from reproduce.report.chains import chains
from reproduce.report.claims import claims
from reproduce.report.comparison import comparison
from reproduce.report.comparison_figures import draw_comparison
from reproduce.report.longer import draw_longer, longer
from reproduce.report.markdown import percent, section, table
from reproduce.report.real import real
from reproduce.report.runs import Result, read_folder
from reproduce.report.safety import safety
from reproduce.report.settings import settings
from reproduce.report.shipped import draw_shipped, shipped
from zipper.config import read_json

HEAD = """# Results

Made by `make report` from `results/*.json`; each of those holds its command, commit, seed, versions and the
fingerprint of its data (`quickstart.json`: command and commit). The embedded corpus is small and has one
voice: its figures say nothing about LibriSpeech.
"""


def render(folder: Path, assets: Path) -> str:
    """RESULTS.md from all result files of a folder; a section without files is left out."""
    found = read_folder(folder)
    sections = [
        quickstart(found.get("quickstart", {})),
        recognition([r for r in found.values() if r.get("task") == "asr" and r["split"] == "test"]),
        speaking([r for r in found.values() if r.get("task") == "tts" and r["split"] == "test"]),
        comparison(folder),
        claims(folder),
        longer(folder),
        chains(folder / "chains"),
        settings(folder / "ablations"),
        ablations(folder / "ablations"),
        shipped(folder),
        real(folder / "real"),
        codec(found.get("codec")),
        towers(assets),
        bench(found.get("bench")),
        safety(found),
    ]
    return "\n".join([HEAD, *(section for section in sections if section)])


def report(
    folder: Path = ROOT / "results",
    file: Path = ROOT / "RESULTS.md",
    figures: Path = ROOT / "reports" / "figures",
) -> Path:
    """Writes RESULTS.md, and the figures of the comparison, the ablations and the shipped model."""
    draw_comparison(folder, figures)
    draw_longer(folder, figures)
    draw_ablations(folder / "ablations", figures)
    draw_shipped(ROOT / "assets" / "zipped", folder, figures)
    file.write_text(render(folder, ROOT / "assets"), encoding="utf-8")
    return file


def quickstart(commands: dict[str, Result]) -> str:
    """Time and memory of the README's commands."""
    if not commands:
        return ""
    rows = [
        [
            f"`{name}`",
            f"{one['seconds'] / 60:.1f} min",
            f"{one['peak_pss_mb'] / 1000:.1f} GB",
            str(one["cores"]),
        ]
        for name, one in commands.items()
    ]
    text = (
        "`make train-asr` in a fresh clone, set-up included, nothing made before; others in the same clone, "
        "after it. Memory: PSS of all processes together, at its peak."
    )
    return section("Quick start", text, table(["command", "time", "peak memory", "cores"], rows), [])


def recognition(results: list[Result]) -> str:
    """Every recognition run on test; seeds of one recipe together."""
    if not results:
        return ""
    rows = []
    results = sorted(results, key=lambda one: one["name"])
    for one in results:
        rows.append(
            [
                one["name"],
                f"{one['parameters_total'] / 1e6:.2f} M",
                f"{one['parameters_trained'] / 1e6:.2f} M",
                str(one["seed"]),
                percent(one["wer"]),
                f"{one['errors']} / {one['words']}",
                percent(one["shuffled_wer"], 0) if "shuffled_wer" in one else "",
                percent(one["share_at_cap"]),
                str(one["steps"]),
                f"`{one['commit']}`",
            ]
        )
    seeds = [one["wer"] for one in results if one["name"] == "asr" or one["name"].startswith("asr-seed")]
    text = (
        f"Greedy, {results[0]['utterances']} test utterances, normaliser {results[0]['normaliser']}. "
        "*Shuffled*: each sentence is given another one's audio, the control that the model listens."
    )
    if len(seeds) > 1:
        text += (
            f" {len(seeds)} seeds of the recipe: mean {percent(statistics.fmean(seeds))}, "
            f"{percent(min(seeds))} to {percent(max(seeds))}."
        )
    head = [
        "run",
        "parameters",
        "trained",
        "seed",
        "WER",
        "errors / words",
        "shuffled",
        "at cap",
        "steps",
        "commit",
    ]
    return section("Speech recognition", text, table(head, rows), [one["command"] for one in results])


def speaking(results: list[Result]) -> str:
    """Every run that speaks, on test: what the judge heard, beside its floor and ceiling."""
    if not results:
        return ""
    results = sorted(results, key=lambda one: one["name"])
    rows = [
        [
            one["name"],
            percent(one["original_wer"]),
            percent(one["oracle_wer"]),
            percent(one["wer"]),
            percent(one["target_wer"]),
            one["decoding"],
            percent(one["share_at_cap"]),
            str(one["seed"]),
            str(one["steps"]),
            f"{one['wall_seconds'] / 60:.0f} min",
            f"`{one['commit']}`",
        ]
        for one in results
    ]
    first = results[0]
    text = (
        f"{first['utterances']} test sentences, {first['words']} words. Judge: {first['judge']}; "
        f"normaliser {first['normaliser']} on both sides. *Recordings*: the judge's errors on real audio. "
        "*Oracle*: on its codec round trip, the ceiling of every model. *Gold*: the model's speech against "
        "the transcript. *Target*: against what the judge heard in the round trip (paper 4.1.4). "
        "*Training*: of the process that ended the run; what came before a resume is not counted."
    )
    head = [
        "run",
        "recordings",
        "oracle",
        "gold",
        "target",
        "decoding",
        "at cap",
        "seed",
        "steps",
        "training",
        "commit",
    ]
    return section("Speech", text, table(head, rows), [one["command"] for one in results])


def codec(result: Result | None) -> str:
    """What the codec loses."""
    if not result:
        return ""
    rows = [
        [
            "original" if row["codebooks"] is None else str(row["codebooks"]),
            f"{row['bits_per_second']:.0f}" if "bits_per_second" in row else "",
            percent(row["wer"]),
            f"{100 * (row['wer'] - result['rows'][0]['wer']):+.1f}" if row["codebooks"] else "",
            f"{row['decode_times_real_time']:.0f} x" if "decode_times_real_time" in row else "",
        ]
        for row in result["rows"]
    ]
    text = (
        f"Judge: {result['judge']}, normaliser {result['normaliser']}, {result['utterances']} "
        f"{result['split']} utterances, {result['rows'][0]['words']} words, at "
        f"{result['sample_rate'] / 1000:.0f} kHz. Encoding one by one: "
        f"{result['encode_times_real_time']:.0f} x real time, {result['threads']} threads."
    )
    head = ["codebooks", "bit/s", "judge's WER", "points lost", "decoding"]
    return section(f"Codec ({result['codec']})", text, table(head, rows), [result["command"]])


def towers(assets: Path) -> str:
    """The shipped towers."""
    rows, commands = [], []
    for file in sorted(assets.glob("*/tower.json")):
        statistics = read_json(file)
        shape = statistics["shape"]
        rows.append(
            [
                file.parent.name,
                f"{shape['layers']} x {shape['width']}",
                f"{shape['codebooks']} x {shape['vocabulary']}",
                ", ".join(f"{value:.2f} ({split})" for split, value in statistics["perplexity"].items()),
                str(statistics["steps"]),
                f"{statistics['minutes']}",
                f"`{statistics['commit']}`",
            ]
        )
        commands.append(statistics["command"])
    if not rows:
        return ""
    head = ["tower", "layers x width", "vocabulary", "perplexity a token", "steps", "minutes", "commit"]
    return section("Pre-trained towers", "They ship in `assets/`.", table(head, rows), commands)


def bench(result: Result | None) -> str:
    """Speed, as ratios within one run."""
    if not result:
        return ""
    tower, zipper, loader = (result["figures"][key] for key in ("tower", "zipper", "loader"))
    rows = [
        ["training, tower alone", f"{tower['units_per_second']:,} units/s", f"{tower['ratio']:.2f} x Llama"],
        ["training, Zipper", f"{zipper['units_per_second']:,} units/s", f"{zipper['ratio']:.2f} x Llama"],
    ]
    for name, one in result["figures"]["decoding"].items():
        cap = f"untrained, {percent(one['share_at_cap'], 0)} written to the cap"
        rows.append([f"recognition, {name}", f"{one['times_real_time']} x real time", cap])
    rows += [
        *generation_rows(result["figures"].get("generation", {})),
        ["padding", percent(loader["padding_share"]), "of an epoch's tokens"],
        ["data wait", percent(loader["data_wait_share"]), "of a step, without workers"],
        ["peak memory of this bench", f"{result['peak_rss_mb']:,} MB", "RSS"],
    ]
    text = (
        f"{result['threads']} threads, float32, torch {result['versions']['torch']}. *Llama*: the one of "
        f"transformers {result['versions']['transformers']} in the speech tower's shape, with one codebook, "
        "trained on the same columns; it and what it is compared with take turns, medians. Units of Zipper "
        "are columns and subwords; its text tower is frozen, zips and input projections come on top."
    )
    return section("Speed", text, table(["what", "figure", "against"], rows), [result["command"]])


def generation_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Speed of writing speech."""
    rows = []
    for name, one in figures.items():
        if isinstance(one, dict):
            against = f"{one['times_uncached']:.1f} x uncached, {one['times_llama']:.2f} x Llama's generate"
            rows.append([f"speaking, {name}", f"{one['frames_per_second']:,.0f} frames/s", against])
    if "real_time_factor" in figures:
        factor = f"{figures['real_time_factor']:.3f} of real time"
        rows.append(["text to sound, one sentence at a time", factor, "the shipped model"])
    return rows
