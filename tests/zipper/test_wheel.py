"""The wheel: built from the checkout, used outside of it, with all that it needs inside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce import ROOT

pytestmark = pytest.mark.slow

EXAMPLE = """
import lightning as L, zipper

model = zipper.Zipper.from_towers(text="assets/text-tower", speech="assets/speech-tower", frozen=["text"])
settings = ["data.folder=all.tsv", "data.dev=1", "data.test=1", "train.tokens=1024"]
data = zipper.ZipperData("manifest", model, tasks={"asr": 1, "tts": 1.26}, overrides=settings)
L.Trainer(max_steps=2, accelerator="cpu", logger=False).fit(zipper.ZipperModule(model, lr=1e-3), data)
model.save_pretrained("mine")
print(type(zipper.Zipper.from_pretrained("mine").transcribe("said.flac")))

shipped = zipper.Zipper.from_pretrained("assets/zipped")
print(shipped.transcribe("said.flac"))
print(zipper.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the packages of a wheel, as pip installs it."""
    made, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), "."]
    subprocess.run(built, cwd=checkout(made), check=True)
    (wheel,) = made.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


def checkout(folder: Path) -> Path:
    """A copy of what is tracked: building leaves files beside its sources."""
    copy = folder / "checkout"
    parts = ["src", "assets", "configs", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *parts], capture_output=True, check=True, encoding="utf-8"
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def test_the_wheel_holds_the_library_its_models_and_configs_and_no_reproduction(installed):
    names = {path.name for path in installed.iterdir()}
    assert "zipper" in names
    assert "reproduce" not in names
    for file in ("assets/zipped/zipper.safetensors", "generation/native_step.c", "configs/asr.yaml"):
        assert (installed / "zipper" / file).is_file(), file
    assert (installed / "bin" / "zipper").is_file()


def test_the_example_runs_from_the_wheel_outside_of_the_checkout(installed, tmp_path):
    recording = ROOT / "results" / "samples" / "test-00000-original.flac"
    text = "every wednesday at five daniel slept with the clever tiger"
    (tmp_path / "said.flac").write_bytes(recording.read_bytes())
    lines = [f"said-{i}\tsaid.flac\t{text}" for i in range(6)]
    (tmp_path / "all.tsv").write_text("\n".join(["id\taudio\ttext", *lines]) + "\n", encoding="utf-8")
    out = subprocess.run(
        [sys.executable, "-c", EXAMPLE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, check=True, encoding="utf-8",
    ).stdout.splitlines()  # fmt: skip
    assert out[-3:] == ["<class 'str'>", text, str(installed / "zipper" / "__init__.py")]
