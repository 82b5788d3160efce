"""`zipper certify`: frozen towers are what they were pre-trained as, or it is said which weight is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zipper
from conftest import joined
from reproduce import ROOT
from zipper.cli import main
from zipper.errors import DataError
from zipper.generation.exported import certify
from zipper.hashes import sha256
from zipper.models.pretrained import read_tower, save_tower
from zipper.weight_files import SMALLEST, as_kept, rounded


@pytest.fixture
def exported(towers) -> Path:
    model = joined(towers)
    model.save_pretrained("mine")
    return Path("mine")


def rewritten(folder: Path, change) -> None:
    """The export with changed weights, and the hash that fits them: what a hash of the file cannot see."""
    weights = load_file(folder / "zipper.safetensors")
    change(weights)
    save_file(weights, folder / "zipper.safetensors")
    info = json.loads((folder / "zipper.json").read_text(encoding="utf-8"))
    info["sha256"] = sha256(folder / "zipper.safetensors")
    (folder / "zipper.json").write_text(json.dumps(info), encoding="utf-8")


def test_an_export_is_certified_and_the_shipped_model_too(exported, capsys):
    assert certify(exported) == ["text"]
    main(["certify", str(ROOT / "assets" / "zipped")])
    assert "text as pre-trained" in capsys.readouterr().out
    main(["export", "assets/three-towers", "small", "--bits", "4", "--frozen-too"])
    for shipped in ("assets/three-towers", "assets/real", "small"):  # from any folder
        main(["certify", shipped])
        assert "text as pre-trained" in capsys.readouterr().out


def test_in_8_bits_frozen_weights_stay_and_a_tower_in_8_bits_is_bit_identical(towers):
    model = zipper.Zipper.from_towers(**towers, frozen=["text"], overrides=["model.zip.heads=2"])
    model.save_pretrained("mine", bits=8)
    assert certify(Path("mine")) == ["text"]
    again = zipper.Zipper.from_pretrained("mine")
    before, after = model.network.state_dict(), again.network.state_dict()
    for name, weight in before.items():
        frozen = name.startswith("towers.text.")
        large = weight.ndim > 1 and weight.numel() >= SMALLEST
        expected = rounded(weight) if large and not frozen else weight.half().float()
        assert torch.equal(after[name], expected), name
    save_tower(Path("small"), again.network.tower("text"), {"reads": "x", "trained_on": None}, bits=8)
    tower = read_tower(Path("small"))
    save_tower(Path("smaller"), tower, {"reads": "x", "trained_on": None}, bits=8)
    again = read_tower(Path("smaller")).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in tower.state_dict().items())


def test_a_frozen_tower_is_rounded_on_request_and_certified_as_rounded(exported, towers, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(exported), "small", "--bits", "5"])
    before = zipper.Zipper.from_pretrained(exported).network.state_dict()
    for words, same in ([], True), (["--frozen-too"], False):
        main(["export", str(exported), "small", "--bits", "4", *words])
        assert certify(Path("small")) == ["text"]
        after = zipper.Zipper.from_pretrained("small").network.state_dict()
        for name, weight in before.items():
            keeps = same and name.startswith("towers.text.")
            assert torch.equal(after[name], weight if keeps else as_kept(weight, 4)), name
    main(["certify", "small"])
    assert "text as pre-trained, in 4 bits" in capsys.readouterr().out
    main(["export", str(exported), "same", "--bits", "16", "--frozen-too"])
    same = zipper.Zipper.from_pretrained("same").network.state_dict()
    assert all(torch.equal(same[name], weight) for name, weight in before.items())
    main(["export", "small", "again", "decode.text.beams=3", "--bits", "4"])  # what is rounded stays as it is
    assert zipper.Zipper.from_pretrained("again").config.decode["text"].beams == 3
    with pytest.raises(SystemExit):
        main(["export", "small", "again", "model.zip.heads=1"])
    again = zipper.Zipper.from_pretrained("again").network.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in after.items())
    rewritten(exported, lambda weights: weights["towers.text.layers.1.attention.to_out.weight"].mul_(1.5))
    with pytest.raises(SystemExit):
        main(["export", str(exported), "wrong", "--bits", "4", "--frozen-too"])
    assert "is not that of" in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_an_export_over_another_model_keeps_nothing_of_it(in_tmp):
    main(["export", "assets/real", "same", "--bits", "4"])
    main(["export", "assets/zipped", "same", "--bits", "8"])
    main(["certify", "same"])
    recording = str(ROOT / "results/samples/test-00000-original.flac")
    assert zipper.Zipper.from_pretrained("same").transcribe(recording).startswith("every wednesday")


def test_one_flipped_bit_is_found_in_a_frozen_tower_and_no_matter_in_one_that_learns(exported):
    def flip(tower: str) -> None:
        name = f"towers.{tower}.layers.1.attention.to_out.weight"
        rewritten(exported, lambda weights: weights[name].view(torch.int16)[0, 0].bitwise_xor_(1))

    flip("speech")
    assert certify(exported) == ["text"]
    flip("text")
    with pytest.raises(DataError, match=r"Tower text: layers\.1\.attention\.to_out\.weight is not that of"):
        certify(exported)


def test_a_layer_that_learnt_though_it_is_said_to_be_frozen_is_found(towers):
    model = joined(towers)
    with torch.no_grad():
        model.network.tower("text").layers[2].feed_forward.down.weight.mul_(1.01)
    model.save_pretrained("mine")
    with pytest.raises(DataError, match=r"Tower text: layers\.2\.feed_forward\.down\.weight is not that of"):
        certify(Path("mine"))


@pytest.mark.parametrize(("key", "value"), [("norm_eps", 1e-4), ("rope_scaling", [2.0]), ("rope_base", 5e5)])
def test_a_setting_that_the_weights_do_not_show_is_found(exported, key, value):
    info = json.loads((exported / "zipper.json").read_text(encoding="utf-8"))
    info["config"]["model"]["towers"]["text"][key] = value
    (exported / "zipper.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match=rf"Tower text has {key}=.*Restore zipper\.json"):
        certify(exported)


@pytest.mark.parametrize("damage", [None, {"text": {}}, {"music": {"weights": {}}}, {"text": []}])
def test_a_damaged_certificate_is_refused(exported, damage):
    info = json.loads((exported / "zipper.json").read_text(encoding="utf-8"))
    (exported / "zipper.json").write_text(json.dumps(info | {"certificate": damage}), encoding="utf-8")
    with pytest.raises(DataError, match=r"certificate"):
        certify(exported)


def test_a_file_that_was_cut_off_and_an_export_without_certificate_are_refused(exported):
    shutil.copytree(exported, "old")
    info = json.loads(Path("old/zipper.json").read_text(encoding="utf-8"))
    del info["certificate"]
    Path("old/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match="holds no certificate"):
        certify(Path("old"))
    weights = exported / "zipper.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"not the file that zipper\.json describes"):
        certify(exported)
    with pytest.raises(zipper.ConfigError, match="is no exported model"):
        certify(Path("nowhere"))


def test_other_logits_of_the_same_weights_are_found(exported, monkeypatch):
    turned = "zipper.models.tower.rotate"
    monkeypatch.setattr(turned, lambda x, rotation: x)
    with pytest.raises(DataError, match=r"has the weights of .*, but other logits"):
        certify(exported)


def test_an_export_whose_frozen_tower_is_gone_is_exported_again_with_its_certificate(exported, towers):
    shutil.rmtree(towers["text"])
    zipper.Zipper.from_pretrained(exported).save_pretrained("again")
    assert certify(Path("again")) == ["text"]
    saved = [json.loads((folder / "zipper.json").read_text("utf-8")) for folder in (exported, Path("again"))]
    assert saved[0]["certificate"] == saved[1]["certificate"]


def test_an_export_that_fails_leaves_the_one_before(exported, towers):
    model = joined(towers)
    torch.nn.init.normal_(model.network.tower("speech").embedding.weight)
    model.network.certificate = {}  # as of a run
    towers["text"].rename("gone")
    with pytest.raises(DataError):
        model.save_pretrained(exported)
    assert certify(exported) == ["text"]
