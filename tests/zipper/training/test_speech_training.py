"""What makes a speech tower ask the text: hidden spans, codebook weights, whitened zips; and the switch."""

import dataclasses
from pathlib import Path

import pytest
import torch

from conftest import JOINT, config, module_for, training_documents, units
from zipper.codecs.load import load_codec
from zipper.config import CodecConfig, RunConfig
from zipper.data.batches import Batch, collate
from zipper.data.documents import Document, document
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError
from zipper.evaluation.result import Origin
from zipper.evaluation.task import evaluate_chain, from_decoded
from zipper.generation.exported import load_trained
from zipper.generation.generate import generate
from zipper.generation.rows import generate_rows
from zipper.modalities.delay import to_timesteps
from zipper.models.losses import mask_history, mask_prompt, next_modality_loss, stream_loss
from zipper.models.pretrained import save_tower
from zipper.models.resolve import joint_fingerprint, resolve
from zipper.models.tower import Tower
from zipper.models.whiten import _record_inputs, rescale_zips, whiten_zips
from zipper.models.zip_block import is_gate
from zipper.training import run as run_module


def joint_batch(dataset) -> Batch:
    return collate(training_documents(dataset, 8, "asr", "tts"), {"text": 1, "speech": 3})


@pytest.mark.parametrize(("mask", "words", "scored"), [(mask_history, JOINT, True), (mask_prompt, (), False)])
def test_a_mask_hides_answers_or_prompts_alone_and_targets_stay(prepared, mask, words, scored):
    model, batch = module_for(prepared, *words).model, joint_batch(prepared)
    torch.manual_seed(0)
    masked = mask(batch, model, 0.4, 3)
    assert torch.equal(masked.streams["text"].tokens, batch.streams["text"].tokens)
    before, after = batch.streams["speech"], masked.streams["speech"]
    assert torch.equal(before.target, after.target)
    changed = (before.tokens != after.tokens).any(-1) & before.valid
    masked_rows = before.valid & ((before.weight > 0) == scored)
    assert not (changed & ~masked_rows).any()
    assert not changed[:, 0].any()
    assert 0.25 < float(changed[masked_rows].float().mean()) < 0.55
    assert (after.tokens[changed] == 18).all()


def test_a_mask_of_prompts_needs_prompts():
    with pytest.raises(ConfigError, match="a prompt is known by a loss weight below 1"):
        config("train.mask=0.2", "train.prompt_weight=1")


def test_codebook_weights_weigh_codebooks_and_their_total_is_known(prepared):
    module, batch = module_for(prepared, *JOINT), joint_batch(prepared)
    tower, stream = module.model.tower("speech"), batch.streams["speech"]
    states = module.model(batch)["speech"]
    alone = [float(stream_loss(tower, states, stream, [float(q == k) for q in range(3)])) for k in range(3)]
    weighted = float(stream_loss(tower, states, stream, [2.0, 0.5, 0.25]))
    assert weighted == pytest.approx(2 * alone[0] + 0.5 * alone[1] + 0.25 * alone[2], rel=1e-5)
    with pytest.raises(ConfigError, match="speech has 3 codebooks"):
        resolve(config("train.codebook_weights=[1.0,1.0]"), prepared)


def test_a_switch_learns_and_moves_nothing_else(prepared):
    module, batch = module_for(prepared, *JOINT), joint_batch(prepared)
    model = module.model
    for name, parameter in model.named_parameters():
        if is_gate(name):  # a text that was heard must differ from one that was given
            parameter.data.fill_(0.5)
    loss = next_modality_loss(model, model(batch), batch)
    loss.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {f"next_modality_heads.{n}.{p}" for n in ("text", "speech") for p in ("weight", "bias")}
    assert batch.segment_ends == 2 * len(batch.ids)
    optimiser = torch.optim.Adam(model.next_modality_heads.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        next_modality_loss(model, model(batch), batch).backward()
        optimiser.step()
    assert float(next_modality_loss(model, model(batch), batch)) < 0.2 * float(loss)


def test_whitened_zips_see_round_states_and_towers_stay(prepared):
    model = module_for(prepared, *JOINT).model.double()
    with torch.no_grad():  # a tower whose states are far from round
        model.tower("text").embedding.weight[:, :3] *= 50
    before = {name: p.clone() for name, p in model.named_parameters()}
    documents = training_documents(prepared, 24, "tts")
    whiten_zips(model, documents)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".projection.0." in name for name in moved)
    seen = []
    block = model.zip(0, "speech", "text")
    hook = block.projection[0].register_forward_hook(lambda _, __, out: seen.append(out))
    batch = collate(documents, {"text": 1, "speech": 3})
    model(batch)
    hook.remove()
    out = seen[0][batch.streams["text"].valid]
    assert out.mean(0).abs().max() < 1e-6
    values = torch.linalg.eigvalsh(out.T.cov())
    assert 1.0 < float(values[values > 1e-6].median()) < 3.0


def test_a_chain_is_scored_as_its_last_hop_alone_would_be(listening, prepared):
    module, cfg = module_for(prepared, *JOINT).eval(), resolve(config(*JOINT), prepared)
    origin, rows = Origin("x", "y", 0, 0.0, 0), [prepared.splits["test"][i] for i in range(6)]
    given = (module.model, prepared, module.statistics, cfg, origin, listening)
    spoken = evaluate_chain("speech>text>speech", *given)
    written = generate_rows(module.model, prepared, module.statistics, rows, ("speech", "text"), 6)
    prompts = [Document("x", [one.as_prompt()], True) for (one,) in written]
    last = [one for (one,) in generate(module.model, prompts, ["speech"], module.statistics)]
    scores = listening.score(rows, last, prepared.fingerprint)
    assert spoken["per_utterance"] == [one.entry() for one in scores]
    assert spoken["task"] == "speech>text>speech"
    assert sum(spoken["stopped"].values()) == spoken["utterances"] == 6
    reasons = [{text.finish_reason, one.finish_reason} for (text,), one in zip(written, last, strict=True)]
    assert spoken["share_ended"] == reasons.count({"stop"}) / 6
    none = dataclasses.replace(last[0], content=last[0].content[:, :0])  # ended where it began
    pairs = [(rows[0], [none, written[0][0]]), (rows[1], [last[1], written[1][0]])]
    kept, again = from_decoded(module.model, prepared, cfg, module.statistics, pairs)
    assert kept is written[0][0]
    assert again.modality == "text"
    text = prepared.modalities["text"].scorer(RunConfig())
    read = evaluate_chain("text>speech>text", *given[:-1], text)
    assert {one["reference"] for one in read["per_utterance"]} == {row["text"] for row in rows}
    assert {"wer", "reread_wer", "share_ended"} <= {*read}


def test_a_rescaled_zip_adds_what_it_added_times_the_size_of_the_states(prepared):
    model = module_for(prepared, *JOINT).model.double()
    with torch.no_grad():
        model.tower("text").embedding.weight.mul_(50)
    before = {n: p.clone() for n, p in model.named_parameters()}
    documents = training_documents(prepared, 16, "asr", "tts")
    sizes: list[torch.Tensor] = []
    block = model.zip(0, "text", "speech")
    hook = block.query_norm.register_forward_pre_hook(lambda _, x: sizes.append(x[0]))
    batch = collate(documents, {"text": 1, "speech": 3})
    model(batch)
    hook.remove()
    rescale_zips(model, documents)
    valid = batch.streams["text"].valid[batch.attends_to["text", "speech"]]
    scale = sizes[0][valid].square().mean(-1).sqrt().median()
    assert scale > 0.5
    torch.testing.assert_close(block.to_out.weight, before["zips.0.text_from_speech.to_out.weight"] * scale)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    ends = ("to_out.weight", "feed_forward.2.weight")
    assert changed == {n for n in before if n.startswith("zips") and n.endswith(ends)}


def test_a_run_in_the_parallel_pattern_writes_what_it_was_trained_on(listening, prepared, monkeypatch):
    ours = units(listening.speech.codec, prepared.modalities["text"].tokenizer, "parallel")
    parallel = dataclasses.replace(prepared, modalities=ours)
    monkeypatch.setattr(run_module, "prepare", lambda cfg, clock, modalities: parallel)
    monkeypatch.setattr(run_module, "load_modalities", lambda cfg, folder: ours)
    cfg = config(*JOINT, "codec.pattern=parallel")
    results = run_module.train(cfg, "x")
    assert results["tts"]["utterances"] == 6
    model = load_trained(cfg.run_dir / "checkpoints" / "best.ckpt").network
    assert model.cfg.towers["speech"].pattern == "parallel"
    given, speech = [], parallel.modalities["speech"]
    for row in prepared.splits["test"].select(range(4)):
        whole = document(parallel, row, "tts", 0.0)
        assert len(whole.segments[1].tokens) == speech.content(row).shape[1] + 2
        given.append(dataclasses.replace(whole, segments=whole.segments[:1]))
    for (segment,) in generate(model, given, ["speech"], measure_statistics(parallel)):
        if segment.content.shape[1]:
            again = to_timesteps(segment.content, speech.layout.codes, "parallel")
            assert torch.equal(again, segment.tokens)
    tower = Tower(dataclasses.replace(model.cfg.towers["speech"], pattern="delay"))
    save_tower(Path("old"), tower, {"reads": speech.fingerprint, "trained_on": None})
    cfg = config(*JOINT, "model.towers.speech.init=old")
    with pytest.raises(ConfigError, match=r"codec\.pattern=parallel, but model.* trained on delay"):
        resolve(cfg, parallel)
    by_hand = config(*JOINT, "model.towers.speech.pattern=parallel")
    with pytest.raises(ConfigError, match=r"pattern=parallel, but codec\.pattern=delay\. Leave it out"):
        resolve(by_hand, prepared)
    save_tower(Path("grown"), tower, {"reads": joint_fingerprint([*ours.values()]), "trained_on": None})
    grown = config(*JOINT, "model.kind=single_decoder", "model.towers.text.init=grown")
    with pytest.raises(ConfigError, match=r"codec\.pattern=parallel, but .*init=grown was trained on delay"):
        resolve(grown, parallel)


def test_fewer_codebooks_are_the_first_ones(monkeypatch):
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    (whole,) = load_codec(CodecConfig()).encode([wave])
    two = load_codec(CodecConfig(codebooks=2))
    assert two.codebooks == 2
    assert torch.equal(two.encode([wave])[0], whole[:2])
    with pytest.raises(ConfigError, match=r"codec\.codebooks=9: .* has 4\. Give 1 to 4"):
        load_codec(CodecConfig(codebooks=9))
    with pytest.raises(ConfigError, match=r"codec\.codebooks=2 is for codec\.name=embedded"):
        CodecConfig(name="encodec_24khz", bandwidth_kbps=1.5, codebooks=2)


def test_whitened_states_have_the_scale_that_a_relu_keeps(prepared):
    """Covariance 2 I, of as many directions as the narrower tower has."""
    model = module_for(prepared, *JOINT).model.double()
    documents = training_documents(prepared, 24, "tts")
    whiten_zips(model, documents)
    block, seen = model.zip(0, "speech", "text"), []
    hook = block.projection[0].register_forward_hook(lambda _, __, out: seen.append(out))
    batch = collate(documents, {"text": 1, "speech": 3})
    model(batch)
    hook.remove()
    values = torch.linalg.eigvalsh(seen[0][batch.streams["text"].valid].T.cov())
    assert float(values[values > 1e-6].median()) == pytest.approx(2, rel=0.01)


def test_zips_that_are_rescaled_again_stay_as_they_are(prepared):
    """As `ZipperData` does that is made again before the training."""
    model = module_for(prepared, *JOINT, "model.zip.gate_init=0").model.double()
    documents = training_documents(prepared, 16, "asr", "tts")
    rescale_zips(model, documents)
    once = {name: weight.clone() for name, weight in model.state_dict().items()}
    rescale_zips(model, documents)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, once[name])


@pytest.mark.parametrize(("share", "span"), [(0.2, 1), (0.4, 3), (0.6, 8)])
def test_a_mask_hides_the_share_that_is_asked_for(prepared, share, span):
    model = module_for(prepared, *JOINT).model
    batch = collate(training_documents(prepared, 24, "tts"), {"text": 1, "speech": 3})
    stream, hidden, count = batch.streams["speech"], 0.0, 0
    torch.manual_seed(0)
    inside = stream.valid & (torch.arange(stream.valid.shape[1]) >= span)  # no span begins before BOS
    for _ in range(100):
        after = mask_history(batch, model, share, span).streams["speech"].tokens
        hidden += float(((after == 18).all(-1) & inside).sum())
        count += int(inside.sum())
    assert hidden / count == pytest.approx(share, abs=0.03)


def test_zips_are_whitened_on_documents_of_their_own_direction(prepared):
    """Also if whole batches have none of them, and on all documents if there are none."""
    model = module_for(prepared, *JOINT).model.double()
    own, others = training_documents(prepared, 16, "asr"), training_documents(prepared, 24, "tts")
    whiten_zips(model, others)
    assert model.zip(0, "text", "speech").projection[0].weight.isfinite().all()
    counts = [
        len(states)
        for documents in (own, [*own, *others])
        for block, states in _record_inputs(model, documents, lambda block: block.projection[0], 1)
        if block is model.zip(0, "text", "speech")
    ]
    assert counts[0] == counts[1]
