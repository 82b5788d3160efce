"""Delay pattern, subwords, codec, store."""

import math
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from encodec import EncodecModel
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, trainers

from conftest import units
from zipper.codecs.codec import Codec
from zipper.codecs.load import load_codec
from zipper.codecs.official import OFFICIAL_FILE
from zipper.config import CodecConfig
from zipper.corpora.utterance import Utterance
from zipper.data.dataset import fingerprint, fingerprint_hash, open_dataset
from zipper.data.encode import prepare_dataset
from zipper.disk import file_lock
from zipper.errors import DataError
from zipper.modalities import delay
from zipper.modalities.delay import Specials, from_timesteps, to_timesteps
from zipper.modalities.tokenizer import Tokenizer


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 99), st.sampled_from([*delay.LAGS]))
@settings(max_examples=100)
def test_a_pattern_and_its_inverse(books, frames, seed, pattern):
    codes = torch.randint(16, (books, frames), generator=torch.Generator().manual_seed(seed))
    out = to_timesteps(codes, 16, pattern)
    special = Specials.after(16)
    longer = max(1, books - 1) if pattern == "delay" else 1
    assert len(out) == frames + delay.extra_timesteps(books, pattern) == 1 + frames + longer
    assert torch.equal(from_timesteps(out, 16, pattern), codes)
    assert (out[0] == special.bos).all()
    assert (out == special.bos).sum() == books
    assert (out[:, 0] == special.eos).sum() == 1
    assert (out[:, 1:] == special.eos).sum() == 0
    assert out.max() <= special.filler
    for q in range(books):
        late = q if pattern == "delay" else 0
        assert torch.equal(out[1 + late : 1 + late + frames, q], codes[q])
    assert delay.scored(out, 16).sum() == books * frames + 1


def test_a_stream_cut_before_its_end_gives_the_frames_that_are_whole():
    codes = torch.arange(15).view(3, 5)
    assert torch.equal(from_timesteps(to_timesteps(codes, 16)[:5], 16), codes[:, :2])
    assert from_timesteps(to_timesteps(codes, 16)[:1], 16).shape == (3, 0)
    assert torch.equal(from_timesteps(to_timesteps(codes, 16, "parallel")[:5], 16, "parallel"), codes[:, :4])


def test_specials_are_never_clamped_into_codes():
    out = to_timesteps(torch.arange(15).view(3, 5), 16)
    out[3, 1] = Specials.after(16).filler
    with pytest.raises(DataError, match="special token in place of a code"):
        from_timesteps(out, 16)
    with pytest.raises(DataError, match="0 to 15"):
        to_timesteps(torch.tensor([[3, 16]]), 16)
    with pytest.raises(DataError, match="0 to 15"):
        to_timesteps(torch.tensor([[-1, 2]]), 16)


def test_subwords_and_their_inverse(subwords, utterances, tmp_path):
    for u in utterances:
        ids = subwords.encode(u.text)
        assert subwords.decode([subwords.bos, *ids, subwords.eos]) == u.text
        assert min(ids) > subwords.eos
        assert max(ids) < subwords.vocabulary
    subwords.save(tmp_path / "tokenizer.json")
    trained_again = Tokenizer.train([u.text for u in utterances if u.split == "train"], 64)
    for again in (Tokenizer.load(tmp_path / "tokenizer.json"), trained_again):
        assert again.fingerprint == subwords.fingerprint
    assert subwords.decode(subwords.encode("it's a quizzical fox")) == "it's a quizzical fox"


def test_a_tokenizer_of_elsewhere_is_refused(tmp_path):
    other = HFTokenizer(models.BPE())
    other.train_from_iterator(["a b"], trainers.BpeTrainer(special_tokens=["<s>"], show_progress=False))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no <begin> and <end>"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_codes_do_not_depend_on_the_batch(codec):
    waves = [torch.randn(n) * 0.1 for n in (3000, 12800, 7001, 640)]
    together = codec.encode(waves)
    for wave, codes in zip(waves, together, strict=True):
        assert codes.shape == (3, math.ceil(len(wave) / 640))
        assert torch.equal(codec.encode([wave])[0], codes)


def test_fewer_codebooks_are_the_first_of_all_and_have_a_name_of_their_own():
    whole, few = load_codec(CodecConfig()), load_codec(CodecConfig(codebooks=2))
    wave = 0.1 * torch.randn(8000)
    (all_codes,), (codes,) = whole.encode([wave]), few.encode([wave])
    assert torch.equal(codes, all_codes[:2])
    assert torch.equal(few.decode(codes), whole.decode(all_codes[:2]))
    assert few.fingerprint != whole.fingerprint
    assert few.kbps == pytest.approx(whole.kbps * 2 / whole.codebooks)


def test_a_codec_hears_and_gives_back_a_wave_times_its_gain(codec):
    plain, wave = Codec(codec.model, 3, 1.0, "embedded"), torch.randn(8000)
    (codes,) = codec.encode([wave])
    assert torch.equal(codes, plain.encode([wave * codec.gain])[0])
    assert not torch.equal(codes, plain.encode([wave])[0])
    torch.testing.assert_close(codec.decode(codes) * codec.gain, plain.decode(codes))


def test_decoding_gives_as_many_samples_as_were_encoded(codec):
    codes = codec.encode([torch.randn(7001) * 0.1])[0]
    assert codec.decode(codes).shape == (11 * 640,)
    assert codec.decode(codes, samples=7001).shape == (7001,)
    with pytest.raises(DataError, match="outside 0 to 15"):
        codec.decode(codes + 16)
    with pytest.raises(DataError, match="empty"):
        codec.encode([torch.zeros(0)])


def test_official_codec_from_a_file(tmp_path):
    """Random weights of the official architecture: loaded strictly, hash enforced under the official name."""
    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    file = tmp_path / "own.th"
    torch.save(model.state_dict(), file)
    codec = load_codec(CodecConfig(name="encodec_24khz", weights=str(file), bandwidth_kbps=1.5))
    assert (codec.codebooks, codec.frame_rate, codec.kbps) == (2, 75.0, 1.5)
    for layer in codec.model.quantizer.vq.layers[:2]:
        layer._codebook.embed.normal_(0, 0.05)
    waves = [torch.randn(n) * 0.1 for n in (4800, 3333, 640)]  # also less than a receptive field
    together = codec.encode(waves)
    assert [c.shape[1] for c in together] == [15, 11, 2]
    assert all(torch.equal(codec.encode([w])[0], c) for w, c in zip(waves, together, strict=True))
    file.rename(tmp_path / OFFICIAL_FILE)
    renamed = CodecConfig(name="encodec_24khz", weights=str(tmp_path / OFFICIAL_FILE), bandwidth_kbps=1.5)
    with pytest.raises(DataError, match="damaged"):
        load_codec(renamed)
    whole = (tmp_path / OFFICIAL_FILE).read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>not found</html>", b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match="does not hold the weights of encodec_24khz"):
            load_codec(CodecConfig(name="encodec_24khz", weights=str(file), bandwidth_kbps=1.5))


def test_store_holds_every_utterance_as_it_was_encoded(dataset, utterances, codec, subwords):
    for split, rows in dataset.splits.items():
        expected = [u for u in utterances if u.split == split]
        assert [row["id"] for row in rows] == [u.id for u in expected]
        for row, u in zip(rows, expected, strict=True):
            assert torch.equal(dataset.modalities["speech"].content(row), codec.encode([u.wave(16000)])[0])
            assert row["ids"] == subwords.encode(u.text)
        seconds = sum(len(u.wave(16000)) / 16000 for u in expected)
        assert dataset.info["hours"][split] == pytest.approx(seconds / 3600, abs=1e-4)
    assert dataset.info["rows"] == {"train": 24, "dev": 6, "test": 6}


def test_a_killed_preparation_goes_on_and_gives_the_same_store(
    tmp_path, utterances, codec, subwords, monkeypatch
):
    whole = prepare_dataset(tmp_path / "a", utterances, units(codec, subwords), 30.0)
    monkeypatch.setattr("zipper.data.encode.SHARD", 5)
    left, encode = [1, 2, 3], Codec.encode

    def stop_after_the_third_shard(self, waves):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return encode(self, waves)

    monkeypatch.setattr(Codec, "encode", stop_after_the_third_shard)
    with pytest.raises(SystemExit):
        prepare_dataset(tmp_path / "b", utterances, units(codec, subwords), 30.0)
    (folder,) = (tmp_path / "b").iterdir()
    with pytest.raises(DataError, match="no finished dataset"):
        open_dataset(folder, units(codec, subwords))
    monkeypatch.setattr(Codec, "encode", encode)
    again = prepare_dataset(tmp_path / "b", utterances, units(codec, subwords), 30.0)
    assert again.info == whole.info
    for split in whole.splits:
        assert again.splits[split].to_list() == whole.splits[split].to_list()


@pytest.mark.parametrize("part", ["codec", "corpus", "tokenizer"])
def test_a_store_made_with_something_else_is_refused(dataset, part):
    expected = {**dataset.info["fingerprint"], part: "another"}
    with pytest.raises(DataError, match=f"made with another {part}"):
        open_dataset(dataset.folder, dataset.modalities, expected)


def test_a_damaged_store_is_mended_by_the_same_command(tmp_path, utterances, codec, subwords, capsys):
    """Whether it was finished or not: only what is damaged is encoded, and all is as it was."""
    dataset = prepare_dataset(tmp_path, utterances, units(codec, subwords), 30.0)
    files = {file.name: file.read_bytes() for file in dataset.folder.iterdir()}
    shards, draw = sorted(dataset.folder.glob("*.arrow")), random.Random(0)
    for turn in range(12):
        shard = draw.choice(shards)
        whole = files[shard.name]
        os.remove(shard)
        if turn:
            shard.write_bytes(whole[: draw.randrange(len(whole) - 8)])  # 8: the mark of its end
        if turn % 2:
            (dataset.folder / "store.json").unlink()
        kept = {file: file.stat().st_mtime_ns for file in shards if file != shard}
        again = prepare_dataset(tmp_path, utterances, units(codec, subwords), 30.0)
        assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == files
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
        said = "Damaged shards are encoded again." in capsys.readouterr().out
        assert said == (turn % 2 == 0)


def test_a_store_that_another_command_is_making_is_waited_for(tmp_path, utterances, codec, subwords, capsys):
    parts = fingerprint(utterances, units(codec, subwords), 30.0, tmp_path.with_name("hashes.arrow"))
    made, lock = [], tmp_path / f".{fingerprint_hash(parts)}.lock"
    with ThreadPoolExecutor(1) as pool:
        with file_lock(lock, "the other's"):
            job = pool.submit(prepare_dataset, tmp_path, utterances, units(codec, subwords), 30.0)
            while "waiting for it" not in capsys.readouterr().out:
                time.sleep(0.02)
            assert not list(tmp_path.glob("*/*"))
        made.append(job.result())
    assert made[0].info["rows"]["train"] == 24
    assert not lock.exists()


def test_audio_that_was_mended_is_encoded_by_the_same_command(tmp_path, utterances, codec, subwords):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"fLaC" + b"x" * 50)
    bad = Utterance("broken", str(broken), "so it is", "x", "train")
    with pytest.raises(DataError, match=r"1 of 37 utterances.*broken"):
        prepare_dataset(tmp_path / "s", [*utterances, bad], units(codec, subwords), 30.0)
    shutil.copy(utterances[0].audio, broken)
    dataset = prepare_dataset(tmp_path / "s", [*utterances, bad], units(codec, subwords), 30.0)
    assert dataset.info["skipped"] == 0
    assert "broken" in dataset.splits["train"]["id"]
