"""Where the zips of the shipped model look in one test utterance, both ways."""

from pathlib import Path
from typing import Any

from reproduce.report.markdown import section
from zipper.evaluation.attention import attention_map
from zipper.evaluation.plot_style import save
from zipper.evaluation.result_file import read_result
from zipper.generation.zipper import Zipper, prompt_of
from zipper.models.zipper import ZipperModel

PAIRS = (("text", "speech"), ("speech", "text"))  # who looks at whom
AUDIO = Path("samples") / "test-00000-original.flac"


def draw_shipped(model: Path, folder: Path, figures: Path) -> list[Path]:
    """attention-ASKING-ASKED. model: a folder that `export` wrote; folder: results, with the utterance."""
    given = utterance(folder)
    if given is None:
        return []
    zipped = Zipper.from_pretrained(model)
    assert isinstance(zipped.network, ZipperModel)
    wave = zipped.read(folder / AUDIO)
    segments = {"text": zipped.encode("text", given["reference"]), "speech": zipped.encode("speech", wave)}
    files = []
    for pair in PAIRS:  # what is asked is given first, as in recognition or in speaking
        document = prompt_of(given["id"], segments[pair[1]], segments[pair[0]])
        title = f"{given['id']}: {given['reference']}"
        rate = zipped.codec.frame_rate
        figure = attention_map(zipped.network, document, pair, zipped.tokenizer, rate, title)
        files.append(save(figure, figures / f"attention-{'-'.join(pair)}"))
    return files


def utterance(folder: Path) -> dict[str, Any] | None:
    """The first of the test split: id, reference; None where there is none."""
    file = folder / "joint-asr.json"
    if not file.is_file() or not (folder / AUDIO).is_file():
        return None
    return dict(read_result(file)["per_utterance"][0])


def shipped(folder: Path) -> str:
    """The section of RESULTS.md."""
    if utterance(folder) is None:
        return ""
    text = (
        "The model in `assets/zipped` reads a test utterance, and speaks it. Mean over heads; $\\rho$ is "
        "Spearman's rank correlation of the order of what asks with the mean place it looks at: 1 walks the "
        "diagonal. Each zip begins with a prior of time (`model.zip.diagonal`).\n\n![Text looks at "
        "speech](reports/figures/attention-text-speech.svg)\n\n![Speech looks at "
        "text](reports/figures/attention-speech-text.svg)"
    )
    return section("Where the zips look", text, "", [])
