"""Live transcription: independent of how sound is cut into pieces, bounded, and never taken back."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zipper
from zipper.config import ROOT
from zipper.errors import ConfigError, DataError
from zipper.generation.live import LiveTranscript
from zipper.generation.word_times import Word

RATE = 1000
SAYINGS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def tone(samples: int, level: float = 1.0) -> Tensor:
    """The highest there is: +level, -level, ..."""
    return level * (1 - 2.0 * (torch.arange(samples) % 2))


def spoken(words: int, loud: float = 0.5) -> Tensor:
    """0.3 s at an amplitude for each word, which tells the words apart."""
    levels = [loud * (1 + i % len(SAYINGS)) / len(SAYINGS) for i in range(words)]
    return torch.cat([tone(300, level) for level in levels])


def transcript(wave: Tensor) -> str:
    """Words of `spoken`; one of which less than half is there is taken for another."""
    found = []
    for part in wave[wave.abs() > 0.05].split(300):
        level = round(float(part.abs().mean()) / 0.5 * len(SAYINGS)) - 1
        found.append(SAYINGS[max(level, 0)] if len(part) > 150 else "noise")
    return " ".join(found)


def words_of(wave: Tensor, cuts: random.Random, longest: float = 3.0) -> tuple[list[str], LiveTranscript]:
    live, words, at = LiveTranscript(transcript, RATE, longest), [], 0
    while at < len(wave):
        count = cuts.choice([1, 50, 700, 3000])
        words += texts(live.feed(wave[at : at + count]))
        assert len(live.sound) <= longest * RATE
        at += count
    return words + texts(live.finish()), live


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


def test_words_do_not_depend_on_the_pieces_and_none_is_lost():
    pause = torch.zeros(600)
    wave = torch.cat([spoken(5), pause, spoken(3), pause, pause, spoken(7), pause])
    expected = [*SAYINGS[:5], *SAYINGS[:3], *SAYINGS[:7]]
    for seed in range(4):
        assert words_of(wave, random.Random(seed))[0] == expected


def test_sound_without_a_pause_is_cut_where_it_is_softest_and_memory_is_bounded():
    dip = tone(200, 0.04)
    wave = torch.cat([torch.cat([spoken(6), dip]) for _ in range(20)])
    words, live = words_of(wave, random.Random(0), longest=2.9)
    assert words == SAYINGS[:6] * 20
    assert len(live.sound) == 0


def test_committed_words_are_those_of_two_transcripts_and_stay():
    answers = iter(["a b c d", "a b x y z", "q r s t u v", "a b x y z w"])
    live = LiveTranscript(lambda wave: next(answers), RATE, 30.0)
    noise = tone(500, 0.1)
    assert live.feed(noise) == []  # too little
    assert live.feed(noise) == []
    assert texts(live.feed(noise)) == ["a"]  # the second word was the last on which both agree
    assert live.feed(noise) == []  # it disagrees with what is committed
    assert texts(live.finish()) == ["b", "x", "y", "z", "w"]


def test_times_are_those_in_all_of_the_sound():
    """A stand-in of alignment, which knows that a word has 0.3 s and where silence ends."""

    def align(wave: Tensor, text: str) -> list[Word]:
        start = int((wave.abs() > 0.05).nonzero()[0]) / RATE
        return [Word(word, start + 0.3 * i, start + 0.3 * (i + 1)) for i, word in enumerate(text.split())]

    wave = torch.cat([torch.zeros(900), spoken(4), torch.zeros(600), torch.zeros(600), spoken(3)])
    live = LiveTranscript(transcript, RATE, 3.0, align=align)
    words = [word for piece in wave.split(130) for word in live.feed(piece)] + live.finish()
    assert texts(words) == [*SAYINGS[:4], *SAYINGS[:3]]
    starts = [*(0.9 + 0.3 * i for i in range(4)), *(3.3 + 0.3 * i for i in range(3))]
    assert [word.start for word in words] == pytest.approx(starts, abs=0.011)


def test_without_alignment_times_are_unknown():
    live = LiveTranscript(transcript, RATE, 3.0)
    assert all(math.isnan(word.start) for word in [*live.feed(spoken(4)), *live.finish()])


def test_what_is_no_piece_of_sound_is_refused():
    live = LiveTranscript(lambda wave: "so", RATE, 3.0)
    for wave in (torch.zeros(2, 700), torch.zeros(700, dtype=torch.int16), np.zeros(700, np.float32)):
        with pytest.raises(DataError, match="must be a tensor of floating-point samples"):
            live.feed(wave)
    for every in (0.0, 1.6, float("nan"), "1", None):  # a segment must hold two
        with pytest.raises(ConfigError, match=r"must be a positive number of seconds, at most 1\.5"):
            LiveTranscript(lambda wave: "so", RATE, 3.0, every)


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
    assert " ".join(texts(words)) == " ".join([model.transcribe(file)] * 2)
    assert [word.start for word in words] == sorted(word.start for word in words)
    again = len(words) // 2
    expected = [word.start for word in model.transcribe_words(file)]
    assert [word.start for word in words[:again]] == pytest.approx(expected, abs=0.13)
    later = len(wave) / model.sample_rate + 0.75
    assert [word.start - later for word in words[again:]] == pytest.approx(expected, abs=0.13)


def heard(wave: Tensor, longest: float = 3.0) -> list[Tensor]:
    """The segments that are transcribed as a whole."""
    last, found = [], []

    def keep(part: Tensor) -> str:
        last[:] = [part]
        return "so it is"

    live = LiveTranscript(keep, RATE, longest)
    close = live._close

    def closed(end: int):
        last.clear()
        words = close(end)
        found.extend(last)
        return words

    live._close = closed
    for piece in wave.split(130):
        live.feed(piece)
    live.finish()
    return found


def test_a_segment_begins_with_silence_and_ends_within_its_pause():
    """As corpora have it: 0.1 s before, and half of the pause of 0.4 s that ends it."""
    one, other = heard(torch.cat([torch.zeros(900), spoken(4), torch.zeros(1000), spoken(3)]))
    assert one.nonzero()[0].item() == 100
    assert len(one) == 100 + 4 * 300 + 200
    assert other.nonzero()[0].item() == pytest.approx(100, abs=20)
    assert int((other != 0).sum()) == 900


def test_a_constant_offset_hides_no_pause_and_no_silence():
    wave = torch.cat([torch.zeros(900), spoken(4), torch.zeros(1000), spoken(3)])
    for offset in (0.005, -0.02):
        moved = heard(wave + offset)
        for one, other in zip(heard(wave), moved, strict=True):
            torch.testing.assert_close(other - offset, one)


def test_no_word_is_lost_where_the_aligned_text_has_other_words():
    """25 is twenty five as it is read; without that the alignment has a word for each."""
    for aligned in (1, 2, 9):

        def align(wave: Tensor, text: str, count: int = aligned) -> list[Word]:
            return [Word("so", 0.1 * at, 0.1 * at + 0.1) for at in range(count)]

        live = LiveTranscript(transcript, RATE, 3.0, align=align)
        words = [word for piece in spoken(5).split(130) for word in live.feed(piece)] + live.finish()
        assert texts(words) == SAYINGS[:5]
        assert [word.start for word in words] == sorted(word.start for word in words)


def test_a_pause_after_little_speech_ends_no_segment():
    wave = torch.cat([spoken(1), torch.zeros(500), spoken(4), torch.zeros(600)])  # 0.3 s of speech
    (only, *rest) = heard(wave)
    assert int((only != 0).sum()) == 5 * 300
    assert not rest


def test_a_long_segment_is_cut_in_the_middle_of_the_softest_place_of_its_second_half():
    wave = tone(4000, 0.5)
    wave[500:600] *= 0.2  # softer, but in the first half
    wave[2000:2100] *= 0.4
    first, *_ = heard(wave)
    assert len(first) == pytest.approx(2050, abs=20)
