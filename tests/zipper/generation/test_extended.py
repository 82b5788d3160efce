"""An image tower for a model that is zipped already: pairs alone, and the old pair stays bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch

import zipper
from conftest import WORDS, config
from zipper.cli import main
from zipper.clock import Clock
from zipper.config import load_config, read_json
from zipper.data.batches import collate
from zipper.data.documents import document
from zipper.data.prepare import prepare
from zipper.errors import ConfigError, DataError
from zipper.generation.exported import certify
from zipper.generation.extended import extended, with_units_of_init
from zipper.hub import push
from zipper.modalities import speech as speech_module
from zipper.modalities.base import load_modalities
from zipper.modalities.image import HEIGHT, Image
from zipper.models.resolve import resolve
from zipper.training import run as run_module
from zipper.training.data import ZipperData
from zipper.weight_files import load_state

pytestmark = pytest.mark.slow

TOWER = "{layers: 2, width: 16, heads: 2, kv_heads: 2, hidden: 16, interval: 1}"
PAIRS = "{image>text: 1, text>image: 1}"
LEFT = [word for word in WORDS if not word.startswith("model.")]


@pytest.fixture
def two(utterances, codec, monkeypatch, in_tmp, tmp_path_factory):
    """A model of text and speech, trained once, and a manifest with images."""
    monkeypatch.setattr(speech_module, "load_codec", lambda cfg: codec)
    data = ["data={corpus: manifest, folder: list.tsv, subwords: 64}", "evaluate.mismatched=false"]
    words = [*data, "model.init=two", "model.modalities=[text, speech, image]", f"model.towers.image={TOWER}"]
    kept = tmp_path_factory.getbasetemp() / "two"
    if kept.exists():
        shutil.copytree(kept, in_tmp, dirs_exist_ok=True)
        return words
    draw, image = torch.Generator().manual_seed(0), Image()
    lines = ["id\taudio\ttext\tsplit\timage"]
    for u in utterances:
        value = torch.randint(256, (HEIGHT, 4, 3), generator=draw, dtype=torch.uint8)
        file = image.write(value, in_tmp / u.id, scale=1)
        lines.append(f"{u.id}\t{u.audio}\t{u.text}\t{u.split}\t{file.name}")
    (in_tmp / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_module.train(config(*data, "name=two", "export=two"), "x")
    shutil.copytree(in_tmp, kept)
    return words


@pytest.mark.rendered
def test_a_tower_is_added_from_pairs_alone_and_the_old_pair_stays_bit_identical(two, in_tmp, capsys):
    cfg = config(*two, f"train.tasks={PAIRS}", "train.lr=0.01", "name=three", "export=three", "train.steps=6")
    run_module.train(cfg, "x")
    old, new = zipper.Zipper.from_pretrained("two"), zipper.Zipper.from_pretrained("three")
    before, after = old.network.state_dict(), new.network.state_dict()
    kept = [name for name in before if not name.startswith("next_modality_heads.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert len(kept) < len(after)
    assert not {*kept} & {*load_state(in_tmp / "three" / "zipper.safetensors")}
    (in_tmp / "three" / "tokenizer.json").unlink()  # as in exports of earlier versions
    assert with_units_of_init(config(*two, "model.init=three")).data.tokenizer == "two/tokenizer.json"
    data = [word for word in two if not word.startswith("model.")]
    tuned = ["train.init=three", "train.tasks={asr: 0, image>text: 1}", "name=tuned", "train.steps=2"]
    run_module.train(load_config(None, [*LEFT, *data, *tuned]), "x")
    assert zipper.Zipper.from_pretrained("build/runs/tuned").network.names == ["text", "speech", "image"]
    dataset = prepare(cfg, Clock(), load_modalities(extended(cfg)))
    rows = [*dataset.splits["test"]]
    for task in ("asr", "tts"):
        several = [
            one.network(
                collate([document(dataset, row, task, 1.0) for row in rows], one.network.cfg.codebooks)
            )
            for one in (old, new)
        ]
        for name in ("text", "speech"):
            assert torch.equal(several[0][name], several[1][name])  # so the logits are, too
    assert [old.transcribe(row["audio"]) for row in rows] == [new.transcribe(row["audio"]) for row in rows]

    main(["generate", "three", "--audio", rows[0]["audio"], "--then", "image"])
    out = capsys.readouterr().out
    assert out.index("text ") < out.index("out.png")  # through text, since the pair was not trained
    value = new.modalities["image"].read("out.png")
    assert value.shape[0] == HEIGHT
    [[text]] = new.generate([{"image": f"{rows[0]['id']}.png"}], ["text"])
    assert isinstance(text.value, str)
    with pytest.raises(ConfigError, match="not trained to generate image after speech"):
        new.generate([{"speech": rows[0]["audio"]}], ["image"])
    with pytest.raises(ConfigError, match=r"holds a part of its model alone: the rest is model\.init=two"):
        push(in_tmp / "three", "me/three", private=True)
    info = in_tmp / "three" / "zipper.json"
    whole = info.read_text(encoding="utf-8")
    info.write_text(whole.replace('"init": "two"', f'"init": "{in_tmp / "two"}"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a part of its model alone: the rest is model\.init=/"):
        push(in_tmp / "three", "me/three", private=True)
    info.write_text(whole, encoding="utf-8")
    (in_tmp / "two").rename(in_tmp / "gone")
    with pytest.raises(ConfigError, match=r"model\.init=two is no exported model"):
        zipper.Zipper.from_pretrained("three")


def test_zips_that_stay_are_not_whitened_anew_for_an_old_task_and_another_base_is_refused(two, in_tmp):
    tasks = "train.tasks={image>text: 1, text>image: 1, asr: 1}"
    cfg = config(*two, tasks, "model.zip.whiten=true", "model.zip.rescale=true", "name=three", "export=three")
    run_module.train(cfg, "x")
    before = zipper.Zipper.from_pretrained("two").network.state_dict()
    after = zipper.Zipper.from_pretrained(cfg.run_dir).network.state_dict()  # not of the base's file
    kept = [name for name in before if not name.startswith("next_modality_heads.")]
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in kept)
    saved = read_json(in_tmp / "three" / "zipper.json")["config"]["data"]
    assert saved["tokenizer"] is None  # that of the base, wherever it is by then
    other = zipper.Zipper.from_pretrained("two")
    torch.nn.init.normal_(other.network.zip(0, "text", "speech").to_out.weight)
    other.save_pretrained("two")
    with pytest.raises(DataError, match=r"model\.init=two is not the model that this one was trained with"):
        zipper.Zipper.from_pretrained("three")


def test_no_document_of_its_batches_holds_speech_and_an_image(two):
    cfg = extended(config(*two, "train.tasks={image>text: 1, text>image: 1, asr: 1}"))
    dataset = prepare(cfg, Clock(), load_modalities(cfg))
    data = ZipperData.of(resolve(cfg, dataset), dataset)
    seen = set()
    for step in range(60):
        batch = data.steps.batch(step, 0, data.codebooks)
        held = {name: batch.streams[name].valid.any(1) for name in ("text", "speech", "image")}
        assert not (held["speech"] & held["image"]).any()
        assert held["text"].all()
        seen |= {name for name, rows in held.items() if rows.any()}
    assert seen == {"text", "speech", "image"}
    row = dataset.splits["train"][0]  # though its rows have all three
    assert all(dataset.modalities[name].content(row).numel() for name in seen)


def test_what_does_not_fit_is_refused(two):
    with pytest.raises(ConfigError, match=r"has \['speech'\], but model.modalities"):
        extended(config(*two, "model.modalities=[text, image]", f"train.tasks={PAIRS}"))
    with pytest.raises(ConfigError, match="is no exported model"):
        extended(config(*two, "model.init=nowhere", f"train.tasks={PAIRS}"))
    for setting in ("position=none", "heads=1"):  # the cache has one of each
        with pytest.raises(ConfigError, match=rf"model\.zip\.{setting}, but the zips of model\.init"):
            extended(config(*two, f"model.zip.{setting}", f"train.tasks={PAIRS}"))
    sparse = "model.towers.image.interval=2"
    why = r"model\.init=two has zips after 2 stages of layers, but .*image has 1"
    with pytest.raises(ConfigError, match=why):
        run_module.train(config(*two, f"train.tasks={PAIRS}", sparse, "name=sparse"), "x")
    with pytest.raises(
        ConfigError, match=r"has model\.kind=zipper, this model insertion.* insertion has no zips"
    ):
        extended(config(*two, "model.kind=insertion", f"train.tasks={PAIRS}"))
    with pytest.raises(ConfigError, match="know the old modalities alone"):
        extended(config(*two, "model.next_modality_head=true", f"train.tasks={PAIRS}"))


def test_a_model_is_extended_on_a_list_without_recordings(two, in_tmp):
    """Its speech tower is kept, and not scored for want of speech."""
    lines = (in_tmp / "list.tsv").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines]
    pairs = ["\t".join([id, text, split, image]) for id, _, text, split, image in cells]
    (in_tmp / "pairs.tsv").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    tasks = "train.tasks={asr: 0, image>text: 1, text>image: 1}"
    cfg = config(*two, "data.folder=pairs.tsv", tasks, "name=pairs", "train.steps=2")
    for result in run_module.train(cfg, "x").values():
        assert result["alone"].keys() == {"text", "image"}


def test_a_base_with_lora_is_extended_with_its_updates_merged(two, in_tmp):
    base = [word for word in two if not word.startswith(("model.init", "model.modalities", "model.towers"))]
    lora = ["model.towers.text={frozen: false, lora: 2}", "train.lr=0.05"]
    run_module.train(config(*base, *lora, "name=tuned", "export=tuned"), "x")
    cfg = config(*two, "model.init=tuned", f"train.tasks={PAIRS}", "name=three", "export=three")
    run_module.train(cfg, "x")
    old, new = zipper.Zipper.from_pretrained("tuned"), zipper.Zipper.from_pretrained("three")
    assert any(".lora_b" in name and weight.any() for name, weight in old.network.state_dict().items())
    assert not any(".lora_" in name for name in new.network.state_dict())
    dataset = prepare(cfg, Clock(), load_modalities(extended(cfg)))
    documents = [document(dataset, row, "asr", 1.0) for row in dataset.splits["test"]]
    states = [one.network(collate(documents, one.network.cfg.codebooks))["text"] for one in (old, new)]
    torch.testing.assert_close(*states)


def test_a_base_is_extended_without_the_towers_that_it_started_from(two, in_tmp, monkeypatch):
    """Its frozen towers' weights are its own."""
    base = [word for word in two if not word.startswith(("model.init", "model.modalities", "model.towers"))]
    alone = ["model.modalities=[text]", "train.tasks={asr: 0, text: 1}", "name=tower", "export=tower"]
    run_module.pretrain(config(*base, *alone), "x")
    started = "model.towers.text={init: tower, frozen: true}"
    run_module.train(config(*base, started, "name=based", "export=based"), "x")
    (in_tmp / "tower").rename("elsewhere")
    run_module.train(
        config(*two, "model.init=based", f"train.tasks={PAIRS}", "name=three", "export=three"), "x"
    )
    towers = [
        zipper.Zipper.from_pretrained(one).network.tower("text").state_dict() for one in ("based", "three")
    ]
    assert towers[0].keys() == towers[1].keys()
    assert all(torch.equal(weight, towers[1][name]) for name, weight in towers[0].items())
    Path("elsewhere").rename("tower")
    monkeypatch.setattr("zipper.weight_files.SMALLEST", 64)
    main(["export", "based", "small", "--bits", "4", "--frozen-too"])
    cfg = config(
        *two, "model.init=small", f"train.tasks={PAIRS}", "name=rounded", "export=more", "train.steps=2"
    )
    run_module.train(cfg, "x")
    assert certify(Path("more")) == ["text"]  # of the rounded weights


def test_a_base_keeps_its_head_of_ctc(two, in_tmp):
    """With it, its doubts, and beam search that is scored by it."""
    base = [word for word in two if not word.startswith(("model.init", "model.modalities", "model.towers"))]
    run_module.train(config(*base, "train.ctc=0.5", "train.lr=0.05", "name=lettered", "export=lettered"), "x")
    cfg = config(*two, "model.init=lettered", f"train.tasks={PAIRS}", "name=three", "export=three")
    run_module.train(cfg, "x")
    models = [zipper.Zipper.from_pretrained(one) for one in ("lettered", "three")]
    models[1].save_pretrained("again")
    models += [zipper.Zipper.from_pretrained(one) for one in ("again", "build/runs/three")]
    prompts = [{"speech": row["audio"]} for row in prepare(cfg, Clock()).splits["test"]]
    for overrides in ([], ["text.beams=3", "text.ctc=0.5"]):
        old, *new = [model.generate(prompts, ["text"], overrides=overrides) for model in models]
        assert all(found == old for found in new)
    assert any(text.doubt for [text] in old)
    for folder in ("three", "again"):
        assert not any(name.startswith("ctc.") for name in load_state(in_tmp / folder / "zipper.safetensors"))


def test_an_image_tower_keeps_its_codebooks_whatever_the_images_of_the_next_training(two, in_tmp):
    data = [word for word in two if not word.startswith(("model.init", "model.modalities"))]
    base = ["model.modalities=[text, image]", "train.tasks={asr: 0, image>text: 1, text>image: 1}"]
    run_module.train(config(*data, *base, "name=seen", "export=seen", "train.steps=2"), "x")
    for file in in_tmp.glob("*.png"):
        Image().write(Image().read(file) // 3, file.with_suffix(""), scale=1)
    more = ["model.init=seen", "model.modalities=[text, image, speech]", "train.tasks={asr: 1}", "name=heard"]
    run_module.train(config(*data, *more, "export=heard", "train.steps=2"), "x")
    models = [zipper.Zipper.from_pretrained(one) for one in ("seen", "heard", "build/runs/heard")]
    assert len({one.modalities["image"].fingerprint for one in models}) == 1
