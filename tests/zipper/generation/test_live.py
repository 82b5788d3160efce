"""Live transcription: independent of how sound is cut into pieces, bounded, and never taken back."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zipper
from zipper.config import ROOT
from zipper.generation.live import LiveTranscript

RATE = 1000
SAYINGS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def spoken(words: int, loud: float = 0.5) -> Tensor:
    """0.3 s of a level for each word, which tells the words apart."""
    levels = [loud * (1 + i % len(SAYINGS)) / len(SAYINGS) for i in range(words)]
    return torch.cat([torch.full((300,), level) for level in levels])


def transcript(wave: Tensor) -> str:
    """Words of `spoken`; one of which less than half is there is taken for another."""
    found = []
    for part in wave[wave.abs() > 0.05].split(300):
        level = round(float(part.mean()) / 0.5 * len(SAYINGS)) - 1
        found.append(SAYINGS[max(level, 0)] if len(part) > 150 else "noise")
    return " ".join(found)


def words_of(wave: Tensor, cuts: random.Random, longest: float = 3.0) -> tuple[list[str], LiveTranscript]:
    live, words, at = LiveTranscript(transcript, RATE, longest), [], 0
    while at < len(wave):
        count = cuts.choice([1, 50, 700, 3000])
        words += live.feed(wave[at : at + count])
        assert len(live.sound) <= longest * RATE
        at += count
    return words + live.finish(), live


def test_words_do_not_depend_on_the_pieces_and_none_is_lost():
    pause = torch.zeros(600)
    wave = torch.cat([spoken(5), pause, spoken(3), pause, pause, spoken(7), pause])
    expected = [*SAYINGS[:5], *SAYINGS[:3], *SAYINGS[:7]]
    for seed in range(4):
        assert words_of(wave, random.Random(seed))[0] == expected


def test_sound_without_a_pause_is_cut_where_it_is_softest_and_memory_is_bounded():
    dip = torch.full((200,), 0.04)
    wave = torch.cat([torch.cat([spoken(6), dip]) for _ in range(20)])
    words, live = words_of(wave, random.Random(0), longest=2.9)
    assert words == SAYINGS[:6] * 20
    assert len(live.sound) == 0


def test_committed_words_are_those_of_two_transcripts_and_stay():
    answers = iter(["a b c d", "a b x y z", "q r s t u v", "a b x y z w"])
    live = LiveTranscript(lambda wave: next(answers), RATE, 30.0)
    noise = torch.full((500,), 0.1)
    assert live.feed(noise) == []  # too little
    assert live.feed(noise) == []
    assert live.feed(noise) == ["a"]  # the second word was the last on which both agree
    assert live.feed(noise) == []  # it disagrees with what is committed
    assert live.finish() == ["b", "x", "y", "z", "w"]


def test_silence_has_no_words():
    live = LiveTranscript(lambda wave: 1 / 0, RATE, 3.0)
    for _ in range(20):
        assert live.feed(torch.zeros(700)) == []
    assert live.finish() == []


@pytest.mark.parametrize("piece", [1600, 7001])
def test_a_model_transcribes_what_arrives_as_it_does_the_whole(piece):
    model = zipper.Zipper.from_pretrained(ROOT / "assets/zipped")
    file = Path(__file__).parents[3] / "results/samples/test-00000-original.flac"
    wave = model.modalities["speech"].read(file)
    twice = torch.cat([wave, torch.zeros(12_000), wave])
    words = [*model.transcribe_stream(twice.split(piece))]
    assert " ".join(words) == " ".join([model.transcribe(file)] * 2)
