"""`bench-live`: the sentences are those of the corpus, with words where the voice says them."""

import itertools
import json

import soundfile as sf
import torch

from reproduce import ROOT
from reproduce.bench.live import sentences
from zipper.cli import run
from zipper.config import load_config


def test_sentences_are_the_recordings_of_the_corpus_and_have_silence_around_their_words():
    first = next(sentences(load_config(ROOT / "configs/asr.yaml").data, 24_000))
    kept, rate = sf.read(ROOT / "results/samples/test-00000-original.flac", dtype="float32")
    again = next(sentences(load_config(ROOT / "configs/asr.yaml").data, rate))
    assert abs(len(again.wave) - len(kept)) <= 1
    assert (
        torch.corrcoef(torch.stack([again.wave[: len(kept)], torch.from_numpy(kept)[: len(again.wave)]]))[
            0, 1
        ]
        > 0.99
    )
    assert all(a.start < a.end <= b.start for a, b in itertools.pairwise(first.words))
    inside = [
        first.wave[round(w.start * 24_000) : round(w.end * 24_000)].square().mean() for w in first.words
    ]
    before = first.wave[: round(first.words[0].start * 24_000) - 480].square().mean()
    assert before < min(inside) / 10


def test_the_benchmark_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    few = ["--sentences", "2", "--speaking", "1", "--minutes", "0.05", "--threads", "1"]
    run(["bench-live", "assets/zipped", *few, "--out", f"{tmp_path}/live.json"])
    found = json.loads((tmp_path / "live.json").read_text())
    assert found["word_times"]["words"] > 5
    assert found["listening"]["wer"] == found["listening"]["offline_wer"] == 0
