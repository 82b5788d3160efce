"""Templates, collation, and the order of training."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets

from conftest import as_batch, interleaving, tiny_model
from zipper.clock import Clock
from zipper.config import load_config
from zipper.corpora.open import open_corpus
from zipper.corpora.utterance import sentences_hash
from zipper.data.batches import collate
from zipper.data.dataset import limit_rows, sentences_of
from zipper.data.documents import document, scored_weight
from zipper.data.encode import prepare_dataset
from zipper.data.prepare import prepare
from zipper.data.schedule import BatchSchedule, _cut
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError, DataError
from zipper.modalities.asr_scorer import SCORER_RATE
from zipper.modalities.speech_scorer import recording
from zipper.models.losses import stream_loss

BOOKS = {"text": 1, "speech": 3}


@pytest.mark.parametrize("task", ["asr", "tts", "speech", "text"])
def test_end_is_scored_exactly_once_a_segment_and_begin_never(dataset, task):
    layouts = {name: modality.layout for name, modality in dataset.modalities.items()}
    for row in dataset.splits["train"]:
        batch = collate([document(dataset, row, task, 1.0)], BOOKS)
        for name, stream in batch.streams.items():
            assert (stream.target == layouts[name].eos).sum() == int(stream.valid.any())
            assert (stream.target == layouts[name].bos).sum() == 0
        lengths = {"text": len(row["ids"]), "speech": len(row["codes"]) // 3}
        weights = scored_weight(lengths, {"text": [1.0], "speech": [1.0] * 3}, task, 1.0)
        assert {n: w for n, w in batch.total.items() if w} == pytest.approx(weights)


def test_the_prompt_comes_first_and_is_scored_only_with_a_weight(dataset):
    row = dataset.splits["train"][0]
    silent = collate([document(dataset, row, "asr", 0.0)], BOOKS)
    assert (silent.streams["speech"].target == -100).all()
    assert silent.streams["speech"].order.max() < silent.streams["text"].order.min()
    spoken = collate([document(dataset, row, "asr", 0.5)], BOOKS)
    assert spoken.total["speech"] == pytest.approx(0.5 * (len(row["codes"]) + 1))
    assert silent.multimodal.all()
    assert not collate([document(dataset, row, "text", 0.0)], BOOKS).multimodal.any()


def test_places_are_the_one_linear_order():
    model = tiny_model(("text", "speech", "music"))
    doc = interleaving(model, random.Random(3), 9)
    batch = as_batch(model, [doc])
    places = torch.cat([s.order[s.valid] for s in batch.streams.values()])
    assert sorted(places.tolist()) == list(range(sum(len(s.tokens) for s in doc.segments)))


def test_loss_is_exact_under_padding_and_slicing():
    """The sum of the slices' losses over the step's total is the mean over all scored pairs, one by one."""
    draw, model = random.Random(1), tiny_model()
    documents = [interleaving(model, draw, parts) for parts in (5, 2, 7, 3)]
    whole = as_batch(model, documents)
    for name in ("text", "speech"):
        tower = model.tower(name)
        slow, pairs = 0.0, 0
        for doc in documents:
            alone = as_batch(model, [doc])
            logits = tower.logits(model(alone)[name])[0]
            for t, row in enumerate(alone.streams[name].target[0]):
                for q, target in enumerate(row):
                    if target >= 0:
                        slow += float(F.cross_entropy(logits[t, q][None], target[None]))
                        pairs += 1
        assert whole.total[name] == pairs
        for cut in ([0, 4], [0, 1, 4], [0, 2, 3, 4]):
            parts = [as_batch(model, documents[a:b]) for a, b in pairwise(cut)]
            loss = sum(stream_loss(tower, model(p)[name], p.streams[name]) for p in parts)
            assert float(loss) / whole.total[name] == pytest.approx(slow / pairs, abs=1e-10)


def steps(dataset, slices=1, tokens=200, seed=0, tasks=None, only=None):
    return BatchSchedule(dataset, "train", tasks or {"asr": 1.0}, tokens, slices, seed, 0.0, only)


def test_batches_are_a_pure_function_of_seed_and_step(dataset):
    one, other = steps(dataset), steps(dataset)
    forwards = [one.examples(i) for i in range(40)]
    assert [other.examples(i) for i in reversed(range(40))] == forwards[::-1]
    assert [steps(dataset, seed=1).examples(i) for i in range(40)] != forwards
    a, b = one.batch(17, 0, BOOKS), other.batch(17, 0, BOOKS)
    assert a.ids == b.ids
    assert all(torch.equal(x, y) for n in BOOKS for x, y in zip(a.streams[n], b.streams[n], strict=True))


def test_every_epoch_holds_every_example_once_within_the_cap(dataset):
    one = steps(dataset, tasks={"asr": 1.0, "tts": 1.25})
    for epoch in range(3):
        batches = [one._epoch(epoch).examples(step) for step in range(one.epoch_length(epoch))]
        examples = [e for batch in batches for e in batch]
        assert sorted(r for r, task in examples if task == "asr") == list(range(24))
        spoken = [r for r, task in examples if task == "tts"]
        assert len(spoken) == 30
        assert set(spoken) == set(range(24))
        for batch in batches:
            longest = max(one._lengths(np.array([row]), task)[0] for row, task in batch)
            assert longest * len(batch) <= 200
    assert [one._epoch(0).examples(step) for step in range(3)] != batches[:3]


@pytest.mark.parametrize("tokens", [30, 100, 1000])
def test_batches_are_as_large_as_the_cap_allows(tokens):
    """Equal to a search example by example. Lengths are nearly in order."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 30, 400))[::-1]
    lengths = lengths + np.random.default_rng(1).integers(0, 2, 400)
    bounds, count, longest = [0], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if (count + 1) * longest > tokens:
            bounds.append(i)
            count, longest = 0, length
        count += 1
    assert _cut(lengths, tokens).tolist() == [*bounds, len(lengths)]


@pytest.mark.parametrize("slices", [2, 3])
def test_slices_of_a_step_are_the_step(dataset, slices):
    """Two ranks, or two accumulated micro-batches, train on what one process does, with the same totals."""
    one, cut = steps(dataset, tokens=400), steps(dataset, slices=slices, tokens=400)
    for step in range(6):
        parts = [cut.batch(step, part, BOOKS) for part in range(slices)]
        expected = [dataset.splits["train"][row]["id"] for row, _ in cut.examples(step)]
        assert sorted(i for part in parts for i in part.ids) == sorted(expected)
        assert all(part.total == parts[0].total for part in parts)
        own = {n: sum(float((p.streams[n].target != -100).sum()) for p in parts) for n in BOOKS}
        assert own == pytest.approx(parts[0].total)
        assert all(part.ids for part in parts)
        assert cut.examples(step) == one.examples(step)  # whatever the number of slices
    first = one.batch(0, 0, BOOKS)
    assert first.total == {n: int((s.target != -100).sum()) for n, s in first.streams.items()}


def test_shares_are_nested(dataset):
    few = {row for i in range(20) for row, _ in steps(dataset, only=5).examples(i)}
    assert few == set(range(5))


def test_no_task_with_a_small_share_goes_without(dataset):
    few = steps(dataset, tasks={"asr": 1.0, "tts": 0.001})
    assert any(task == "tts" for i in range(few.epoch_length(0)) for _, task in few.examples(i))


def test_a_cap_below_the_longest_utterance_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"train\.tokens=20 is less.*Give at least"):
        steps(dataset, tokens=20)


def test_a_slice_without_examples_learns_nothing_and_takes_part(dataset):
    """An epoch's last group can be smaller than the ranks."""
    one, cut = steps(dataset, tokens=132), steps(dataset, slices=3, tokens=132)
    assert one.epoch_length(0) == cut.epoch_length(0)
    small = next(i for i in range(cut.epoch_length(0)) if len(cut.examples(i)) < 3)
    count = len(cut.examples(small))
    parts = [cut.batch(small, part, BOOKS) for part in range(3)]
    assert all((p.streams["text"].target == -100).all() for p in parts[count:])
    assert all((p.streams[n].next_modality == -100).all() for p in parts[count:] for n in BOOKS)
    assert sum(len(p.ids) for p in parts[:count]) == count
    model = tiny_model().float()
    part = parts[-1]
    streams = {n: s._replace(tokens=s.tokens % 7) for n, s in part.streams.items()}
    states = model(part._replace(streams=streams))
    loss = sum(stream_loss(model.tower(n), states[n], s) for n, s in part.streams.items())
    loss.backward()
    assert float(loss) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.tower("text").parameters())


def test_documents_that_weigh_alike_let_the_mixture_weigh_their_tasks(dataset):
    """The sum over a step counts documents, not the share of a task's tokens in the step."""
    tasks = {"asr": 1.0, "tts": 1.26}
    steps = BatchSchedule(dataset, "train", tasks, 400, 1, 0, 0.0, loss_mean="document")
    shares: dict[str, float] = {"text": 0.0, "speech": 0.0}
    documents = dict.fromkeys(tasks, 0)
    for step in range(steps.epoch_length(0)):
        batch = steps.batch(step, 0, BOOKS)
        examples = steps.examples(step)
        for task in tasks:
            documents[task] += sum(of == task for _, of in examples)
        for name, stream in batch.streams.items():
            scored = float((stream.weight[..., None] * (stream.target != -100)).sum())
            shares[name] += scored / batch.total[name] * len(examples) / 2
    assert shares["speech"] / shares["text"] == pytest.approx(1.26, rel=0.1)
    assert shares["text"] == pytest.approx(documents["asr"], rel=0.1)


def test_a_share_of_a_real_corpus_is_nested_and_of_all_speakers():
    rows = Dataset.from_list([
        {
            "id": f"{speaker}-{take:02d}", "speaker": str(speaker), "subset": "librispeech/train-clean-100",
            "audio": f"{speaker}-{take:02d}.flac", "start": 0.0,
        }
        for speaker in range(10) for take in range(20)
    ])  # fmt: skip
    few, more = limit_rows(rows, 20), limit_rows(rows, 60)
    assert (len(few), len(more)) == (20, 60)
    assert {*few["id"]} < {*more["id"]}
    assert len({*more["speaker"]}) == 10
    assert more["id"] == sorted(more["id"])  # in the order of the store
    assert limit_rows(rows, 1000)["id"] == limit_rows(rows, None)["id"] == rows["id"]
    mixed = rows.map(lambda row: {"subset": "spoken/train"} if row["speaker"] < "5" else row)
    assert 5 < sum(subset == "spoken/train" for subset in limit_rows(mixed, 30)["subset"]) < 25
    spoken = rows.map(lambda row: {"subset": "spoken/train"})
    assert limit_rows(spoken, 20)["id"] == rows["id"][:20]
    faster = concatenate_datasets([spoken, spoken.map(lambda row: {"id": f"{row['id']}@1.1"})])
    assert limit_rows(faster, 20)["id"] == [*rows["id"][:20], *(f"{id}@1.1" for id in rows["id"][:20])]
    # Ids of the user's own that end as those of copies do.
    own = rows.map(lambda row: {"id": f"{row['speaker']}@1.{int(row['id'][-2:])}"})
    assert len(limit_rows(own, 5)) == 5


def test_utterances_of_train_are_encoded_at_each_speed_and_stay_together_in_subsets(
    utterances, dataset, in_tmp
):
    file = in_tmp / "all.tsv"
    lines = [f"{u.id}\t{u.audio}\t{u.text}\t{u.split}" for u in utterances]
    file.write_text("\n".join(["id\taudio\ttext\tsplit", *lines]) + "\n", encoding="utf-8")
    words = ["data.corpus=manifest", f"data.folder={file}", "data.speeds=[0.8,1,1.25]"]
    found = open_corpus(load_config(None, words))
    counts = {split: sum(u.split == split for u in found) for split in ("train", "dev", "test")}
    assert counts == {"train": 3 * 24, "dev": 6, "test": 6}
    encoded = prepare_dataset(in_tmp / "stores", found, dataset.modalities, 30.0)
    rows = {row["id"]: row for row in encoded.splits["train"]}
    for u in utterances:
        if u.split == "train":
            slow, same, fast = (rows[f"{u.id}{suffix}"] for suffix in ("@0.8", "", "@1.25"))
            assert slow["seconds"] * 0.8 == pytest.approx(same["seconds"], abs=1e-3)
            assert fast["seconds"] * 1.25 == pytest.approx(same["seconds"], abs=1e-3)
            assert slow["frames"] > same["frames"] > fast["frames"]
            assert slow["text"] == same["text"]
    few = limit_rows(encoded.splits["train"], 5)["id"]
    assert len(few) == 15
    assert len({id.partition("@")[0] for id in few}) == 5
    texts = sentences_of(encoded.splits["train"], "text")
    assert texts == [u.text for u in utterances if u.split == "train"]  # once, in their order
    assert encoded.info["trained_on"] == sentences_hash(texts)
    # The recording of a copy is played at its speed, too.
    first = next(u.id for u in utterances if u.split == "train")
    for speed in ("@0.8", "", "@1.25"):
        row = rows[f"{first}{speed}"]
        assert len(recording(row)) == pytest.approx(row["seconds"] * SCORER_RATE, abs=20)
    lines[1] = lines[1].replace(utterances[1].id, f"{first}@0.8", 1)
    file.write_text("\n".join(["id\taudio\ttext\tsplit", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"@0\.8 ends as that of a copy at another speed"):
        open_corpus(load_config(None, words))


def test_sentences_of_train_that_dev_or_test_repeat_are_counted(utterances, dataset, in_tmp, capsys):
    """Once for an utterance, whatever the copies at other speeds; not the empty text of speech alone."""
    said, lines = utterances[0].text, ["id\taudio\ttext\tsplit"]
    for u in utterances:
        text = said if u.id in ("test-1", "test-4") else "" if u.id in ("train-2", "dev-0") else u.text
        lines.append(f"{u.id}\t{u.audio}\t{text}\t{u.split}")
    Path("all.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["data.corpus=manifest", "data.folder=all.tsv", "data.speeds=[1,1.25]"]
    cfg = load_config(None, [*words, "train.tasks={asr: 1, speech: 1}"])
    found = prepare(cfg, Clock(), dataset.modalities).info
    assert found["repeated"] == {"dev": 0, "test": 2}
    out = capsys.readouterr().out
    assert "2 of 6 utterances of test have a sentence of train" in out
    assert "utterances of dev have" not in out


def test_the_first_documents_are_of_every_task(dataset):
    """Zips are initialised on them: without one of a task, its zips had NaN weights."""
    found = steps(dataset, tasks={"asr": 50.0, "tts": 1.0}, tokens=100).first_documents(1)
    orders = {tuple(part.modality for part in one.segments) for one in found}
    assert orders == {("speech", "text"), ("text", "speech")}


def test_the_last_token_of_a_segment_is_to_tell_which_modality_follows(dataset):
    row, names = dataset.splits["train"][0], [*BOOKS]
    for task, order in (("asr", ["speech", "text"]), ("tts", ["text", "speech"])):
        batch = collate([document(dataset, row, task, 0.0)], BOOKS)
        for name, then in zip(order, [names.index(order[1]), len(names)], strict=True):  # the last: none
            assert batch.streams[name].next_modality[0].tolist()[-1] == then
            assert (batch.streams[name].next_modality[0, :-1] == -100).all()
    alone = collate([document(dataset, row, "text", 0.0)], BOOKS)
    assert (alone.streams["text"].next_modality == -100).all()


def test_slices_know_how_many_segments_of_the_step_end(dataset):
    cut = BatchSchedule(dataset, "train", {"asr": 1.0, "text": 1.0}, 400, 2, 0, 0.0)
    for step in range(4):
        parts = [cut.batch(step, part, BOOKS) for part in range(2)]
        own = sum(int((s.next_modality != -100).sum()) for part in parts for s in part.streams.values())
        assert {part.segment_ends for part in parts} == {own}


def test_epochs_and_seeds_put_other_examples_together(dataset):
    def batches(seed: int, epoch: int) -> set[frozenset]:
        found = steps(dataset, seed=seed)._epoch(epoch)
        return {frozenset(found.examples(step)) for step in range(len(found))}

    assert batches(0, 0) == batches(0, 0)
    several = [batches(0, 0), batches(0, 1), batches(1, 0), batches(1, 1)]
    assert all(a != b for i, a in enumerate(several) for b in several[:i])


def test_documents_weigh_the_mean_of_all_tasks_that_end_in_a_modality(dataset):
    tasks = {"asr": 1.0, "text": 1.0, "tts": 1.0}
    one = BatchSchedule(dataset, "train", tasks, 400, 1, 0, 0.0, loss_mean="document")
    rows = dataset.splits["train"]
    assert one.average["text"] == pytest.approx(np.mean([len(row["ids"]) + 1 for row in rows]))
    assert one.average["speech"] == pytest.approx(np.mean([len(row["codes"]) + 1 for row in rows]))
    batch = one.batch(0, 0, BOOKS)
    assert batch.total["text"] == pytest.approx(one.average["text"] * len(batch.ids) / 2)


def test_rates_are_tokens_over_seconds_of_all_rows(dataset):
    rows = dataset.splits["train"]
    spoken = sum(row["seconds"] for row in rows)
    assert measure_statistics(dataset).rates["text"] == pytest.approx(sum(map(len, rows["ids"])) / spoken)
    # Sentences without a recording, as of a text corpus beside it, have no rate.
    lengths = [0.0] * 8 + rows["seconds"][8:]
    mixed = rows.remove_columns("seconds").add_column("seconds", lengths)
    found = measure_statistics(replace(dataset, splits={**dataset.splits, "train": mixed}))
    assert found.rates["text"] == pytest.approx(sum(map(len, rows["ids"][8:])) / sum(lengths))
