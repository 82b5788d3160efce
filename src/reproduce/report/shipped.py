"""Cross-attention maps of the shipped model on one test utterance, in both directions."""

from pathlib import Path
from typing import Any

from reproduce.report.markdown import section
from zipper.evaluation.attention import attention_map
from zipper.evaluation.plot_style import save
from zipper.evaluation.result_file import read_result
from zipper.generation.zipper import Zipper, prompt_of
from zipper.models.zipper import ZipperModel

PAIRS = (("text", "speech"), ("speech", "text"))  # (query, source) modality
AUDIO = Path("samples") / "test-00000-original.flac"


def draw_shipped(model: Path, folder: Path, figures: Path) -> list[Path]:
    """Draws attention-QUERY-SOURCE. model: exported model; folder: results, with the utterance."""
    given = utterance(folder)
    if given is None:
        return []
    zipped = Zipper.from_pretrained(model)
    assert isinstance(zipped.network, ZipperModel)
    wave = zipped.read(folder / AUDIO)
    segments = {"text": zipped.encode("text", given["reference"]), "speech": zipped.encode("speech", wave)}
    files = []
    for pair in PAIRS:  # the source comes first, as in ASR and TTS
        document = prompt_of(given["id"], segments[pair[1]], segments[pair[0]])
        title = f"{given['id']}: {given['reference']}"
        rate = zipped.codec.frame_rate
        figure = attention_map(zipped.network, document, pair, zipped.tokenizer, rate, title)
        files.append(save(figure, figures / f"attention-{'-'.join(pair)}"))
    return files


def utterance(folder: Path) -> dict[str, Any] | None:
    """First test utterance (id, reference); None if its files are missing."""
    file = folder / "joint-asr.json"
    if not file.is_file() or not (folder / AUDIO).is_file():
        return None
    return dict(read_result(file)["per_utterance"][0])


def shipped(folder: Path) -> str:
    """Section on the cross-attention maps."""
    if utterance(folder) is None:
        return ""
    text = (
        "Cross-attention of the model in `assets/zipped` on a test utterance, for ASR and TTS, mean over "
        "heads. $\\rho$: Spearman's rank correlation between query position and mean attended position; "
        "monotonic attention gives 1. Each zip is initialised with a time prior "
        "(`model.zip.diagonal`).\n\n![Text attends to "
        "speech](reports/figures/attention-text-speech.svg)\n\n![Speech attends to "
        "text](reports/figures/attention-speech-text.svg)"
    )
    return section("Cross-attention maps", text, "", [])
