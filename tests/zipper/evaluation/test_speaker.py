"""Speaker similarity: of the file whose hash is known, whatever the volume, and left out without it."""

import hashlib
import sys
from types import SimpleNamespace

import pytest
import torch

from zipper.errors import DataError
from zipper.evaluation import speaker as speaker_module
from zipper.evaluation.codec import between_speakers
from zipper.evaluation.speaker import FILE, SpeakerEncoder, speaker_encoder

pytestmark = pytest.mark.usefixtures("in_tmp")


@pytest.fixture
def package(in_tmp, monkeypatch):
    """A package with random weights in the published layout."""
    torch.manual_seed(0)
    weights = {**SpeakerEncoder().state_dict(), "similarity_weight": torch.ones(1)}
    folder = in_tmp / "site" / "resemblyzer"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its code is not run')\n", encoding="utf-8")
    torch.save({"model_state": weights, "step": 1}, folder / FILE)
    monkeypatch.setattr(speaker_module, "SHA256", hashlib.sha256((folder / FILE).read_bytes()).hexdigest())
    monkeypatch.setattr(sys, "path", [str(in_tmp / "site"), *sys.path])
    return folder


def noise(seconds: float) -> torch.Tensor:
    return 0.01 * torch.randn(int(16_000 * seconds), generator=torch.Generator().manual_seed(1))


def test_an_embedding_has_length_1_and_does_not_depend_on_the_volume(package):
    encoder = speaker_encoder()
    for seconds in (0.3, 1.6, 2.9, 7.0):
        found = encoder(noise(seconds))
        assert found.norm() == pytest.approx(1, abs=1e-5)
        assert found @ encoder(0.3 * noise(seconds)) == pytest.approx(1, abs=1e-4)


def test_windows_are_those_of_the_publication(package):
    """160 frames every 77, the last left out if less than three quarters of it are sound."""
    encoder = speaker_encoder()
    sizes = []
    encoder.lstm.register_forward_hook(lambda module, inputs, out: sizes.append(tuple(inputs[0].shape)))
    for frames in (100, 160, 195, 196, 197, 237, 280):
        encoder(noise(frames / 100))
    assert [size[0] for size in sizes] == [1, 1, 1, 1, 2, 2, 3]
    assert {size[1:] for size in sizes} == {(160, 40)}


def test_a_package_that_is_missing_is_left_out_and_a_changed_one_is_refused(package, monkeypatch):
    (package / FILE).write_bytes((package / FILE).read_bytes() + b"x")
    with pytest.raises(DataError, match=r"missing or changed.*Reinstall"):
        speaker_encoder()
    monkeypatch.setattr(speaker_module, "find_spec", lambda name: None)
    assert speaker_encoder() is None


def test_voices_are_compared_with_those_of_others():
    names = ["a", "a", "b", "b", "a", "b"]
    said = [SimpleNamespace(id=str(i), speaker=name) for i, name in enumerate(names)]
    voices = [torch.tensor([1.0, 0.0] if name == "a" else [0.6, 0.8]) for name in names]
    assert between_speakers(said, voices) == 0.6
    assert between_speakers(said[:2], voices[:2]) is None
