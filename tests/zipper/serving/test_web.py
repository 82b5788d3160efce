"""`zipper web`: its functions, and the page in Chromium with a microphone that plays a recording."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio.functional as AF
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from served import serving

import zipper
from reproduce import ROOT
from zipper.config import RunConfig
from zipper.modalities.image import Image
from zipper.modalities.resampling import resample
from zipper.serving.app import create_app
from zipper.serving.web import _add_images, _mono

if TYPE_CHECKING:
    from playwright.sync_api import Page

RECORDING = ROOT / "results/samples/test-00000-original.flac"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def model() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets/zipped")


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with serving(create_app(model, page=True)) as address:
        yield f"http://{address}/"


def test_a_recording_is_read_without_the_page(address, model, tmp_path):
    client = Client(address, verbose=False)
    text, table, picture = client.predict(handle_file(RECORDING), api_name="/read")
    assert text == model.transcribe(RECORDING)
    assert [tuple(row) for row in table["data"]] == model.transcribe_words(RECORDING)
    assert picture["type"] == "matplotlib"
    sf.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    with pytest.raises(AppError, match="is silent"):
        client.predict(handle_file(tmp_path / "silent.wav"), api_name="/read")
    assert client.predict(handle_file(RECORDING), api_name="/read")[0] == text


def test_unknown_addresses_of_the_interface_are_not_answered_by_the_page(address):
    for method, path in (
        ("GET", "v1/realtime"),
        ("POST", "v1/audio/translations"),
        ("GET", "v1/audio/speech"),
    ):
        answer = httpx.request(method, address + path)
        assert answer.status_code == 404
        assert "not served here" in answer.json()["error"]["message"]
    assert "text/html" in httpx.get(address).headers["content-type"]


def test_a_recogniser_without_speech_says_what_it_doubts(tmp_path):
    model = zipper.Zipper.from_pretrained(ROOT / "assets/real")
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
    sf.write(tmp_path / "noise.wav", noise, 16_000)
    with serving(create_app(model, page=True)) as address:
        client = Client(f"http://{address}/", verbose=False)
        text, _, _ = client.predict(handle_file(tmp_path / "noise.wav"), api_name="/read")
        assert "[doubtful: " in text
        config = httpx.get(f"http://{address}/config").json()
    tabs = {
        one["props"]["label"]: one["props"]["visible"]
        for one in config["components"]
        if one["type"] == "tabitem"
    }
    assert tabs == {"Listen": True, "Recording": True, "Speak": False}


def test_an_upload_beyond_the_limit_is_refused_and_the_next_is_read(address, model):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": bytes(26_000_000)}, timeout=60)
    assert answer.status_code == 413
    client = Client(address, verbose=False)
    assert client.predict(handle_file(RECORDING), api_name="/read")[0] == model.transcribe(RECORDING)


@pytest.mark.parametrize("kind", ["int16", "float32", "stereo"])
def test_sound_of_a_browser_is_a_waveform_at_the_models_rate(kind):
    tone = np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 440).astype(np.float32) / 2
    samples = {"int16": (tone * 32767).astype(np.int16), "float32": tone, "stereo": np.stack([tone, tone], 1)}
    found = resample(_mono(samples[kind]), 48_000, 16_000)
    expected = torch.sin(torch.arange(16_000) / 16_000 * 2 * torch.pi * 440) / 2
    torch.testing.assert_close(found[100:-100], expected[100:-100], rtol=0, atol=1e-3)


def test_a_model_with_images_draws_and_looks():
    """A stand-in of three towers, which draws each sentence as a page of paper with one pixel of ink."""
    image = Image.load(RunConfig())
    drawn = torch.full((8, 16, 3), 255, dtype=torch.uint8)
    drawn[3, 5] = 0

    def generate(prompts, order):
        values = {"text": "a page", "image": drawn}
        return [[SimpleNamespace(modality=name, value=values[name]) for name in order] for _ in prompts]

    model = SimpleNamespace(modalities={"image": image}, generate=generate)
    with gr.Blocks() as page:
        _add_images(model, lambda run: run())
    draw, listen, look = (event.fn for event in page.fns.values())
    pixels = draw("a page")
    assert pixels.shape == (128, 256, 3)
    ink = (pixels.sum(-1) < 100).nonzero()
    assert (min(ink[0]) // 16, min(ink[1]) // 16) == (3, 5)
    assert listen("a.wav")[0] == look("a.png") == "a page"
    assert np.array_equal(listen("a.wav")[1], pixels)
    assert (look(None), listen(None)) == ("", ("", None))


@pytest.fixture
def page(address, tmp_path) -> Iterator["Page"]:
    """The page on a phone, whose microphone plays a recording again and again, with three seconds between."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    wave, rate = sf.read(RECORDING, dtype="float32")
    played = AF.resample(torch.from_numpy(wave), rate, 48_000).numpy()
    sf.write(tmp_path / "mic.wav", np.pad(played, (48_000, 96_000)), 48_000)
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox"]
    fake += [f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=fake)
        opened = browser.new_page(viewport=PHONE)
        opened.set_default_timeout(60_000)
        opened.goto(address)
        yield opened
        browser.close()


def record(page: "Page") -> None:
    while not page.locator("#microphone .stop-button").is_visible():  # a button may not do anything yet
        page.locator("#microphone .record-button").click()
        page.wait_for_timeout(1000)


@pytest.mark.slow
def test_somebody_uses_the_page_on_a_phone(page, model, tmp_path):
    def narrow() -> bool:
        return page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

    expected = model.transcribe(RECORDING)
    heard, seen = page.locator("#heard textarea"), list[str]()
    record(page)
    while expected not in (seen or [""])[-1]:
        page.wait_for_timeout(200)
        seen.append(heard.input_value())
        assert seen[-1].startswith(seen[-2] if len(seen) > 1 else "")  # no word is taken back
        assert len(seen) < 200
        if len(seen) % 75 == 0 and not seen[-1]:  # Chromium's stand-in of a microphone may not start
            page.reload()
            record(page)
    assert len({*seen}) > 3  # it came while it was said
    page.locator("#microphone .stop-button").click()
    page.locator("#last img").wait_for()
    assert expected in heard.input_value()
    assert narrow()

    page.get_by_role("tab", name="Speak").click()
    page.get_by_role("button", name="Speak").last.click()
    page.get_by_text("first sound after").wait_for()
    page.wait_for_function("Math.abs(document.querySelector('#spoken audio').duration - 2.4) < 0.3")
    page.locator("#sound img").wait_for()
    page.locator("#said textarea").fill("7 up")
    page.get_by_role("button", name="Speak").last.click()
    page.get_by_text("Write them in words").wait_for()
    assert narrow()

    page.get_by_role("tab", name="Recording").click()
    page.locator("#recording input[type=file]").set_input_files(RECORDING)
    page.locator("#picture img").wait_for()
    assert page.locator("#text textarea").input_value() == expected
    assert narrow()
    broken = Path(tmp_path / "broken.wav")
    broken.write_bytes(b"no sound at all")
    page.locator("#recording button[aria-label=Clear]").click()
    page.locator("#recording input[type=file]").set_input_files(broken)
    page.get_by_text("cannot be read as audio").first.wait_for()
