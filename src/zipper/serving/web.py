"""The page of `zipper web`: a microphone with a live transcript, recordings, and a sentence to speak."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import torch
from fastapi import FastAPI
from matplotlib.figure import Figure
from PIL import Image as Picture
from torch import Tensor

from zipper.errors import ConfigError, DataError
from zipper.evaluation.attention import listening_picture
from zipper.generation.live import LiveTranscript
from zipper.generation.word_times import Word
from zipper.generation.zipper import Zipper
from zipper.modalities.resampling import ResamplingStream
from zipper.models.zipper import ZipperModel
from zipper.serving.batcher import LIMIT, LONGEST, Batcher, Busy

Sound = tuple[int, np.ndarray]  # sample rate in Hz, samples [n] or [n, channels]
EVERY = 0.5  # seconds between pieces of the microphone
KEPT = 3600  # seconds that uploads stay in gradio's folder of temporary files
CSS = """
.gradio-container {max-width: 760px !important; margin: auto; padding: 12px !important}
#spoken audio {width: 100%}
#last, #picture, #sound {background: white}
#last:not(:has(img)), #picture:not(:has(img)), #sound:not(:has(img)), .times:has(.no-rows),
#spoken:not(:has([src])), #spoken .empty {display: none !important}
"""
EXAMPLES = [  # which the shipped model knows
    "why did helen give the blue wallet to the quiet singer",
    "julia carried thirty five green buttons",
    "every wednesday at five daniel slept with the clever tiger",
]
PAGE = "page seven of the red book shows three tigers"
FONTS = ["system-ui", "sans-serif"]  # of the reader's own machine


@dataclass
class Listening:
    """What a microphone has heard so far."""

    live: LiveTranscript
    resampled: ResamplingStream
    words: list[Word] = field(default_factory=list)


def add_page(app: FastAPI, model: Zipper, batcher: Batcher, name: str, megabytes: float) -> FastAPI:
    """Put the page at / of a server. megabytes: largest upload."""
    page = create_page(model, batcher, name)
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        css=CSS,
        head=f"<script>{script}</script>",
        footer_links=[],
        theme=gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        show_error=True,
        max_file_size=int(0.99 * megabytes * 1e6),  # the rest is the form's
    )


def create_page(model: Zipper, batcher: Batcher, name: str) -> gr.Blocks:
    """The page. Everything that uses the model's network runs in the batcher's thread."""

    listens, speaks = (pair in model.network.used for pair in (("text", "speech"), ("speech", "text")))
    zips = listens and isinstance(model.network, ZipperModel)

    def ask(run: Callable[[], Any]) -> Any:
        with _shown_errors():
            return batcher.run(run).result()

    def hear(state: Listening | None, sound: Sound | None) -> tuple[Listening | None, str, list[list[Any]]]:
        if sound is None:
            return state, "", []
        rate, samples = sound
        state = state or Listening(model.live_transcript(EVERY), ResamplingStream(rate, model.sample_rate))
        wave = state.resampled.push(_mono(samples))
        state.words += ask(lambda: state.live.feed(wave))
        return state, *_shown(state.words)

    def stop(state: Listening | None) -> tuple[None, str, list[list[Any]], Figure | None]:
        if state is None:
            raise gr.Error("Nothing was heard. May this page use the microphone?", print_exception=False)
        rest = state.resampled.push(torch.zeros(0), last=True)
        state.words += ask(lambda: [*state.live.feed(rest), *state.live.finish()])
        wave, found = state.live.closed
        return None, *_shown(state.words), ask(lambda: drawn(wave, " ".join(found)))

    def read(file: str | None) -> tuple[str, list[list[Any]], Figure | None]:
        if file is None:
            return "", [], None

        with _shown_errors():
            wave = model.modalities["speech"].read(file, longest=LONGEST, limit=LIMIT)
            if model.is_long(wave):
                pieces = batcher.transcribe_long(wave, zips)
                all_words = [word for piece in pieces for word in piece.result()]
                return *_shown(all_words), None  # too long for one picture

        def transcribed() -> tuple[str, list[Word], Figure | None]:
            [[found]] = model.generate([{"speech": wave}], ["text"])
            text = found.value
            words = model.transcript_words(wave, text) if zips else []
            shown = f"{text or '(no words)'}{f' [doubtful: {found.doubt}]' if found.doubt else ''}"
            return shown, words, drawn(wave, text)

        text, words, picture = ask(transcribed)
        return text, _shown(words)[1], picture

    def speak(text: str) -> Figure | None:
        try:
            wave = batcher.run(lambda: model.synthesize(text)).result()
            return batcher.run(lambda: drawn(wave, text)).result()
        except (ConfigError, DataError, Busy):
            return None  # the reason is shown already

    def drawn(wave: Tensor, text: str) -> Figure | None:
        with suppress(ConfigError, DataError):  # a transcript may be longer than a prompt
            return listening_picture(model, wave, text) if text and zips else None
        return None

    title = f"Zipper: {name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        does = " and ".join(["recognises speech"] * listens + ["speaks"] * speaks)
        gr.Markdown(
            f"# Zipper\nTwo language models, one of text and one of speech, zipped: `{name}` {does}. It runs "
            "on this machine alone."
        )
        with gr.Tab("Listen", visible=listens):
            state = gr.State()
            microphone = gr.Audio(
                sources=["microphone"], streaming=True, label="Microphone", elem_id="microphone"
            )
            heard = gr.Textbox(
                label="Live transcript", lines=3, buttons=["copy"], interactive=False, elem_id="heard",
                placeholder="Press record and speak. A word that is shown does not change any more.",
            )  # fmt: skip
            times, last = _table(), _picture("last")
            shown: list[Any] = [state, heard, times]
            quiet: Any = {"show_progress": "hidden"}
            microphone.start_recording(lambda: (None, "", [], None), None, [*shown, last], **quiet)
            inputs = [state, microphone]
            microphone.stream(hear, inputs, shown, stream_every=EVERY, concurrency_limit=None, **quiet)
            microphone.stop_recording(stop, [state], [*shown, last], **quiet)
        with gr.Tab("Recording", visible=listens):
            recording = gr.Audio(
                sources=["upload", "microphone"], type="filepath", label="Recording", elem_id="recording",
                buttons=["download"],
            )  # fmt: skip  # a path: our reader needs no ffmpeg
            text = gr.Textbox(
                label="Transcript", lines=2, buttons=["copy"], interactive=False, elem_id="text"
            )
            picture, table = _picture("picture"), _table()
            recording.change(read, [recording], [text, table, picture], concurrency_limit=None)
        with gr.Tab("Speak", visible=speaks):
            said = gr.Textbox(
                label="Sentence", lines=2, value=EXAMPLES[0], elem_id="said", submit_btn="Speak"
            )
            gr.Examples([[one] for one in EXAMPLES], [said], label="Sentences")
            message = gr.Markdown(elem_id="message")
            gr.HTML("<audio controls></audio>", elem_id="spoken")
            spoken = _picture("sound")
            playing = said.submit(None, [said], [message], js="(text) => zipperSpeak(text)")
            playing.then(speak, [said], [spoken], **quiet)
        if "image" in model.network.names:
            with gr.Tab("Image"):
                _add_images(model, ask)
    return page


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Context whose errors the page shows."""
    try:
        yield
    except (ConfigError, DataError, Busy) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from None


def _add_images(model: Zipper, ask: Callable[[Callable[[], Any]], Any]) -> None:
    """Images and sentences of each other. ask: runs what uses the network."""

    def look(file: str | None) -> str:
        [[text]] = ask(lambda: model.generate([{"image": file}], ["text"])) if file else [[None]]
        return text.value if text else ""

    def draw(text: str) -> np.ndarray:
        [[image]] = ask(lambda: model.generate([{"text": text}], ["image"]))
        return shown(image.value)

    def listen(file: str | None) -> tuple[str, np.ndarray | None]:
        if file is None:
            return "", None
        [[text, image]] = ask(lambda: model.generate([{"speech": file}], ["text", "image"]))
        return text.value, shown(image.value)

    def shown(value: Tensor) -> np.ndarray:
        with TemporaryDirectory() as folder:
            file = model.modalities["image"].write(value, Path(folder) / "image")
            assert file is not None
            return np.asarray(Picture.open(file))

    sentence = gr.Textbox(label="Sentence", value=PAGE, elem_id="sentence", submit_btn="Draw")
    spoken = gr.Audio(sources=["upload", "microphone"], type="filepath", label="or say it", elem_id="say")
    drawn = gr.Image(label="Image", interactive=False, buttons=["download"], elem_id="drawn")
    sentence.submit(draw, [sentence], [drawn])
    spoken.change(listen, [spoken], [sentence, drawn])
    given = gr.Image(type="filepath", sources=["upload"], label="An image", elem_id="given")
    said = gr.Textbox(label="What it shows", buttons=["copy"], interactive=False, elem_id="shows")
    given.upload(look, [given], [said])


def _picture(name: str) -> gr.Plot:
    """Spectrogram with words, and where the zips look."""
    return gr.Plot(show_label=False, elem_id=name)


def _table() -> gr.Dataframe:
    return gr.Dataframe(
        headers=["word", "from (s)", "to (s)"], datatype=["str", "number", "number"], label="Word times",
        interactive=False, max_height=260, elem_classes="times",
    )  # fmt: skip


def _shown(words: list[Word]) -> tuple[str, list[list[Any]]]:
    return " ".join(word.text for word in words), [[*word] for word in words]


def _mono(samples: np.ndarray) -> Tensor:
    """Mean of the channels, float32 [n], of samples [n] or [n, channels] from a browser."""
    scale = np.iinfo(samples.dtype).max if np.issubdtype(samples.dtype, np.integer) else 1
    channels = samples if samples.ndim > 1 else samples[:, None]
    return torch.from_numpy(channels.astype(np.float32).mean(1) / scale)
