"""`bench-live`: the sentences are those of the corpus, with words where the voice says them."""

import itertools
import json

import soundfile as sf
import torch

from reproduce import ROOT
from reproduce.bench.live import sentences
from zipper.cli import run
from zipper.config import load_config
from zipper.corpora.spoken import VOICE_RATE, _speak, spoken_texts
from zipper.corpora.utterance import Utterance


def test_sentences_are_the_recordings_of_the_corpus_and_have_silence_around_their_words(tmp_path):
    cfg = load_config(ROOT / "configs/asr.yaml").data
    first = next(sentences(cfg, VOICE_RATE))
    text = spoken_texts(cfg)["test"][0]
    # Made here, too: where a recording is cut differs a little between kinds of CPUs.
    spoken = Utterance("test-00000", str(tmp_path / "test-00000.flac"), text, "heart", "test", "spoken/test")
    _speak((spoken, cfg.seed, cfg.rates))
    kept, rate = sf.read(tmp_path / "test-00000.flac", dtype="float32")
    assert (first.text, len(first.wave), rate) == (text, len(kept), VOICE_RATE)
    assert torch.corrcoef(torch.stack([first.wave, torch.from_numpy(kept)]))[0, 1] > 0.99
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
