"""Lists, folders of text and tokenizers of users that do not quite fit are refused, or read rightly."""

import errno
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile as sf
import torch
from datasets import concatenate_datasets
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

import zipper
from conftest import joined, units
from zipper.clock import Clock
from zipper.config import RunConfig, TrainCodecConfig, load_config
from zipper.corpora.lists import read_list, sentences_of_folder
from zipper.corpora.open import open_corpus
from zipper.corpora.utterance import SPLITS, Utterance, hold_out
from zipper.data.dataset import listing_hash
from zipper.data.encode import _where_files_are, prepare_dataset
from zipper.data.prepare import prepare
from zipper.errors import ConfigError, DataError
from zipper.modalities.text import Text
from zipper.modalities.tokenizer import LETTERS, Tokenizer
from zipper.training.crops import Crops


def corpus(*words: str) -> RunConfig:
    return load_config(None, [*words])


def written(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("alphabet", [[one.upper() for one in LETTERS], LETTERS[:20]])
def test_a_tokenizer_that_loses_letters_is_refused(tmp_path, alphabet):
    tokenizer = HFTokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<begin>", "<end>", "<unk>"]
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.save(str(tmp_path / "own.json"))
    with pytest.raises(DataError, match=r"loses letters of normalised text.* z"):
        Tokenizer.load(tmp_path / "own.json")


def test_a_tokenizer_that_begins_or_ends_with_another_token_is_another_one(tmp_path):
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<a>", "<b>", "<c>"], initial_alphabet=LETTERS)
    tokenizer.train_from_iterator([], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = []
    for bos, eos in ((0, 1), (0, 2), (2, 1), (0, 1)):
        config = json.dumps({"bos_token_id": bos, "eos_token_id": eos})
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
        found.append(Tokenizer.load(tmp_path / "tokenizer.json"))
        assert (found[-1].bos, found[-1].eos) == (bos, eos)
    assert len({one.fingerprint for one in found}) == 3
    assert found[0].fingerprint == found[3].fingerprint


def test_a_missing_recording_is_another_corpus_than_none():
    """One is skipped, the other a text of its own: the dataset that was encoded first decided for both."""
    none, missing = (Utterance("a", audio, "so", "s", "train", "manifest/train") for audio in (None, ""))
    assert listing_hash([none]) != listing_hash([missing])


@pytest.mark.parametrize("id", ["a@2", "a@0.9", "a@1.1"])
def test_an_id_of_a_copy_at_another_speed_is_refused(tmp_path, id):
    file = written(tmp_path / "all.tsv", "id\taudio\ttext", f"{id}\ta.wav\tso")
    with pytest.raises(DataError, match=f"line 2: the id {id} ends as that of a copy at another speed"):
        read_list(file, 1, 1, 0)


def test_cells_in_quotes_and_commas_are_named(tmp_path):
    with pytest.raises(DataError, match=r'audio="a b\.wav" is quoted'):
        read_list(written(tmp_path / "a.tsv", "id\taudio\ttext", '1\t"a b.wav"\t"so," he said'), 1, 1, 0)
    with pytest.raises(DataError, match="Separate the columns with tabs, not with commas"):
        read_list(written(tmp_path / "a.csv", "id,audio,text", "1,a.wav,so"), 1, 1, 0)


def test_blanks_around_a_speaker_make_no_other_one_and_subsets_stay(tmp_path):
    lines = [f"{i}\ta{i}.wav\tso\t{i % 5}{' ' * (i % 2)}\tclean" for i in range(20)]
    found = read_list(written(tmp_path / "a.tsv", "id\taudio\ttext\tspeaker\tsubset", *lines), 1, 1, 0)
    splits = {speaker: {u.split for u in found if u.speaker == speaker} for speaker in "01234"}
    assert all(len(several) == 1 for several in splits.values())
    assert {u.subset for u in found} == {"manifest/clean"}


def test_segments_that_begin_within_ten_milliseconds_have_ids_of_their_own(tmp_path):
    lines = ["a.wav\tso\t1.000\t2", "a.wav\tit\t1.004\t3"]
    found = read_list(written(tmp_path / "a.tsv", "audio\ttext\tstart\tend", *lines), 1, 1, 0, only="train")
    assert len({u.id for u in found}) == 2


def test_a_recording_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (u,) = read_list(written(tmp_path / "a.tsv", "id\taudio\ttext", "1\t~/a.wav\tso"), 1, 1, 0, only="train")
    assert u.audio == str(tmp_path / "home" / "a.wav")


def test_folders_of_text_may_hold_other_things_but_no_other_encoding(tmp_path):
    folder = tmp_path / "books"
    (folder / "notes.txt").mkdir(parents=True)
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    written(folder / "A.TXT", "So it is.")
    assert sentences_of_folder(folder, "x") == {"A": ["so it is"]}
    (tmp_path / "more").mkdir()
    written(tmp_path / "more" / "c.txt", "The cat.")
    (folder / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "again").symlink_to(folder)  # in a circle
    written(folder / "A.txt", "It rains.")
    found = sentences_of_folder(folder, "x")
    assert sorted(map(tuple, found.values())) == [("it rains",), ("so it is",), ("the cat",)]
    (folder / "b.txt").write_bytes("Un café.".encode("latin-1"))
    with pytest.raises(DataError, match=r"b\.txt cannot be read as UTF-8 text"):
        sentences_of_folder(folder, "x")


def test_transcripts_of_dev_and_test_are_no_plain_text(tmp_path):
    (tmp_path / "LibriTTS/train-clean-100/9/100").mkdir(parents=True)
    words = [f"data.folder={tmp_path}", "data.splits={train: [train-clean-100]}"]
    with pytest.raises(DataError, match="files are transcripts, also of dev and test"):
        open_corpus(corpus("data.corpus=text+libritts", *words))


def test_settings_of_corpora_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the file of a manifest and the folder of librispeech"):
        corpus("data.corpus=manifest+librispeech")
    twice = "data.splits={train: [dev-clean], dev: [dev-clean], test: [dev-clean]}"
    with pytest.raises(DataError, match="names dev-clean twice"):
        open_corpus(corpus("data.corpus=librispeech", f"data.folder={tmp_path}", twice))


@pytest.mark.parametrize("recipe", ["real-speech", "mini-librispeech", "real-single-decoder", "real-units"])
def test_a_recipe_of_real_speech_takes_a_list_as_the_docs_say(tmp_path, capsys, recipe):
    rows = [f"{split}-{i}\ta.wav\tso it is\t{split}" for split in SPLITS for i in range(3)]
    file = written(tmp_path / "a.tsv", "id\taudio\ttext\tsplit", *rows)
    cfg = load_config(Path(f"configs/{recipe}.yaml"), ["data.corpus=manifest", f"data.folder={file}"])
    assert {u.split for u in open_corpus(cfg)} == {*SPLITS}
    assert ("data.corpus=manifest ignores it" in capsys.readouterr().out) == bool(cfg.data.splits)


def test_a_folder_of_too_little_text_is_refused(tmp_path):
    written(tmp_path / "a.txt", "Ten words are few.")
    words = ["data.corpus=text", f"data.folder={tmp_path}"]
    with pytest.raises(DataError, match="holds no passage of 20 to 30 words"):
        open_corpus(corpus(*words, "data.passages=[20,30]"))


def test_an_encoded_dataset_follows_its_recordings(tmp_path, utterances, codec, subwords):
    """The folder of a corpus may move: names of the three nearest folders count, places do not."""
    here, there = tmp_path / "here", tmp_path / "there"
    placed = []
    for u in utterances:
        target = here / "x" / "y" / u.split / Path(u.audio).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(u.audio, target)
        placed.append(Utterance(u.id, str(target), u.text, u.speaker, u.split, "manifest/x"))
    modalities = units(codec, subwords)
    before = prepare_dataset(tmp_path / "stores", placed, modalities, 30.0)
    here.rename(there)
    moved = [Utterance(u.id, u.audio.replace("/here/", "/there/"), *(u.text, u.speaker, u.split, u.subset))
             for u in placed]  # fmt: skip
    after = prepare_dataset(tmp_path / "stores", moved, modalities, 30.0)
    assert after.folder == before.folder
    for split, rows in after.splits.items():
        assert rows["audio"][:] == [u.audio for u in moved if u.split == split]
        for name in {*rows.column_names} - {"audio"}:
            assert rows[name][:] == before.splits[split][name][:]


def test_an_encoded_dataset_follows_some_of_its_recordings(utterances, dataset, tmp_path):
    """Those of one folder have moved, and the others have not."""
    moved = [replace(u, audio=shutil.copy(u.audio, tmp_path)) if u.id[-1] in "135" else u for u in utterances]
    found = prepare_dataset(dataset.folder.parent, moved, dataset.modalities, 30.0)
    assert found.folder == dataset.folder
    for split, rows in found.splits.items():
        assert rows["audio"][:] == [u.audio for u in moved if u.split == split]


def test_an_encoded_dataset_follows_a_single_recording_of_many(dataset):
    one = dataset.splits["test"].select([0])
    many = concatenate_datasets([one] * 300).remove_columns("id")
    many = many.add_column("id", [str(at) for at in range(300)])
    audio = [*one["audio"][:]] * 300
    audio[1] = "moved.flac"
    found = [Utterance(str(at), file, "so", "s", "test") for at, file in enumerate(audio)]
    followed = _where_files_are(replace(dataset, splits={"test": many}), found)
    assert followed.splits["test"]["audio"][:] == audio


def test_who_is_held_out_depends_on_the_seed_and_three_speakers_are_enough():
    several = [Utterance(f"{s}-{i}", "a", "x", s, "") for s in "abcdefghijkl" for i in range(2)]
    held = {frozenset(u.id for u in hold_out(several, 4, 4, seed) if u.split == "test") for seed in range(5)}
    assert len(held) > 1
    for count, whole in ((3, True), (2, False)):  # of two speakers, single utterances are held out
        split = {u.id: u.split for u in hold_out(several[: 2 * count], 1, 1, seed=0)}
        assert all(split[f"{s}-0"] == split[f"{s}-1"] for s in "abc"[:count]) == whole
        assert {*split.values()} == {*SPLITS}


def test_a_tokenizer_is_trained_on_the_training_split_alone(in_tmp):
    (in_tmp / "books").mkdir()
    for word in ("alpha", "bravo", "charlie", "delta", "echo"):
        (in_tmp / "books" / f"{word}.txt").write_text(f"{word} {word}.\n\n" * 20, encoding="utf-8")
    cfg = load_config(None, ["data.corpus=text", "data.folder=books", "data.dev=20", "data.test=20"])
    texts = [u.text for u in open_corpus(cfg) if u.split == "train"]
    assert len({*texts}) == 3
    dataset = prepare(cfg, Clock(), {"text": Text(None, 60)})
    assert dataset.modalities["text"].fingerprint == Tokenizer.train(texts, 60).fingerprint


def test_one_split_of_a_list_is_opened_alone(in_tmp):
    lines = [f"{split}-{i}\tso it is\t{split}" for split in SPLITS for i in range(3)]
    given = ["data.corpus=manifest", "data.folder=list.tsv", "train.tasks={text: 1}"]
    for last, there in (("split", "test"), ("subset", None)):
        written(in_tmp / "list.tsv", f"id\ttext\t{last}", *lines)
        found = open_corpus(load_config(None, given), "test")
        assert [u.id for u in found] == [f"{s}-{i}" for s in SPLITS for i in range(3) if there in (None, s)]
        assert {u.split for u in found} == {"test"}  # without splits, the whole list


def test_a_codec_is_trained_on_recordings_at_their_speeds_without_the_broken_ones(tmp_path, capsys):
    file = tmp_path / "a.wav"
    cfg = TrainCodecConfig(seconds=0.48)
    sf.write(file, torch.randn(cfg.sample_rate).numpy() * 0.1, cfg.sample_rate)
    speeds = Counter({1.0: 120, 0.5: 1})
    found = [
        Utterance(f"{speed}-{i}", str(file), None, "s", "train", speed=speed)
        for speed, count in speeds.items()
        for i in range(count)
    ]
    broken = Utterance("gone", str(tmp_path / "gone.wav"), None, "s", "train")
    crops = Crops([*found, broken], cfg, 0, folder=tmp_path)
    assert Counter(len(wave) for wave in crops.waves) == {cfg.sample_rate: 120, 2 * cfg.sample_rate: 1}
    assert "1 recordings were skipped" in capsys.readouterr().out
    assert "gone" in (tmp_path / "recordings.skipped").read_text(encoding="utf-8")
    texts = [replace(u, text="page 5" if i == 7 else "page five") for i, u in enumerate(found)]
    other = tmp_path / "other"
    other.mkdir()
    crops = Crops(texts, replace(cfg, semantic="whisper", semantic_ctc=1), 0, folder=other)
    assert len(crops.waves) == 120  # no letters are learnt from what has no reading
    assert "its text has digits" in (other / "recordings.skipped").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="2 of 123 utterances cannot be used, more than 1%"):
        Crops([*found, broken, broken], cfg, 0, folder=tmp_path)


def test_a_modality_that_cannot_encode_a_value_names_the_utterance(tmp_path, utterances, codec, subwords):
    def encode(values):
        if any(value == utterances[3].text for value in values):
            raise ValueError("invalid literal")
        return Text(subwords).encode(values)

    modalities = units(codec, subwords)
    modalities["text"].encode = encode
    with pytest.raises(DataError, match=r"Utterances .* cannot be encoded as text \(ValueError\('invalid"):
        prepare_dataset(tmp_path / "stores", utterances, modalities, 30.0)


def test_python_says_how_a_list_and_a_setting_are_given(manifest, towers):
    model = joined(towers)
    with pytest.raises(ConfigError, match=r'Give "manifest", and overrides=\["data\.folder=mine\.tsv"\]'):
        zipper.ZipperData("mine.tsv", model, tasks={"asr": 1})
    with pytest.raises(ConfigError, match="give a list of settings"):
        zipper.ZipperData("manifest", model, tasks={"asr": 1}, overrides=f"data.folder={manifest}")


def test_a_training_of_a_codec_goes_on_with_the_same_recordings_alone(tmp_path, capsys):
    cfg, found = TrainCodecConfig(seconds=0.48), []
    length = round(cfg.seconds * cfg.sample_rate)
    for i, count in enumerate((length, length + 1, length - 1, 2 * length)):
        wave = 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(i)).numpy()
        sf.write(tmp_path / f"{i}.wav", wave, cfg.sample_rate)
        found.append(Utterance(str(i), str(tmp_path / f"{i}.wav"), "so", "s", "train"))
    crops = Crops(found, cfg, 0, folder=tmp_path)
    assert [len(wave) for wave in crops.waves] == [length, length + 1, 2 * length]
    assert "1 recordings are shorter than train_codec.seconds=0.48, and left out" in capsys.readouterr().out
    batch, _ = next(crops.crops(0))
    assert batch.shape[1] == length
    Crops([replace(u, text="it is") for u in found], cfg, 0, folder=tmp_path)  # texts without a letter head
    with pytest.raises(DataError, match="the beginning of a training on other recordings or texts"):
        Crops(found[::-1], cfg, 0, folder=tmp_path)


def test_names_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t").mkdir()
    for name in (b"a.txt", b"b.txt", b"caf\xe9.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "t") + b"/" + name)).write_text("So it is.", encoding="utf-8")
    with pytest.raises(DataError, match="the name of a file or folder is not UTF-8"):
        open_corpus(corpus("data.corpus=text", f"data.folder={tmp_path / 't'}", "data.dev=1", "data.test=1"))


def test_a_link_to_a_list_has_the_suffix_and_the_recordings_beside_it(tmp_path):
    (tmp_path / "cache").mkdir()
    lines = [json.dumps({"id": s, "audio": "x.wav", "text": "so", "split": s}) for s in SPLITS]
    written(tmp_path / "cache" / "0123", *lines)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "m.jsonl").symlink_to("../cache/0123")
    found = open_corpus(corpus("data.corpus=manifest", f"data.folder={tmp_path / 'lists' / 'm.jsonl'}"))
    assert {u.audio for u in found} == {str(tmp_path / "lists" / "x.wav")}


def test_a_split_without_a_usable_recording_is_refused(in_tmp, towers, codec):
    lines = ["id\taudio\ttext\tsplit"]
    sound = torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy()
    for i in range(202):
        name = f"{'silent' if i == 200 else 'a'}.wav"
        lines.append(f"{i}\t{name}\tso it is\t{'test' if i == 200 else 'dev' if i == 201 else 'train'}")
    sf.write("a.wav", 0.1 * sound, 16_000)
    sf.write("silent.wav", 0 * sound, 16_000)
    cfg = corpus("data.corpus=manifest", f"data.folder={written(Path('m.tsv'), *lines)}")
    with pytest.raises(DataError, match="all utterances of split test were skipped"):
        prepare(cfg, Clock(), units(codec, Tokenizer.train(["so it is"], 30)))


def test_datasets_are_made_in_folders_of_any_name(in_tmp, utterances, codec, subwords):
    for name in ("~", "a::b", "~/x"):
        dataset = prepare_dataset(Path(name) / "stores", utterances, units(codec, subwords), 30.0)
        assert dataset.folder.is_relative_to(name)


def test_what_killed_processes_left_of_shards_goes(in_tmp, utterances, codec, subwords, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("zipper.data.shards.ArrowWriter.finalize", full)
        with pytest.raises(OSError, match="No space left"):
            prepare_dataset(Path("s"), utterances, units(codec, subwords), 30.0)
    (folder,) = [one for one in Path("s").iterdir() if one.is_dir()]
    assert not [*folder.glob("*.part")]
    (folder / "train-00000.1.part").write_bytes(b"x")
    prepare_dataset(Path("s"), utterances, units(codec, subwords), 30.0)
    assert not [*folder.glob("*.part")]
