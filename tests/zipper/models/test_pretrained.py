"""Language models of elsewhere as towers: equal to transformers, strict, and from a folder or the hub."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import units
from language_models import LLAMA3, MODELS, saved, tokenizer
from reproduce import ROOT
from zipper.config import TowerConfig, load_config
from zipper.data.dataset import EncodedDataset
from zipper.data.encode import prepare_dataset
from zipper.errors import ConfigError, DataError
from zipper.generation.zipper import Zipper
from zipper.hub import model_card, model_folder, push
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.hf import FAMILIES, shape_of
from zipper.models.pretrained import load_weights, read_tower, save_tower, tower_info
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.training.run import pretrain, train


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers_in_float64(kind, tmp_path, monkeypatch):
    saved(tmp_path, kind)
    assert read_tower(tmp_path).cfg.rope_scaling == shape_of(tmp_path)["rope_scaling"]
    assert difference(tmp_path, monkeypatch) < 1e-9


SMOLLM2 = ROOT / "build" / "towers" / "smollm2"


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="`make train-language-model` has not fetched SmolLM2 here")
def test_logits_of_smollm2_are_those_of_transformers_in_float64(monkeypatch):
    assert difference(SMOLLM2, monkeypatch) < 1e-9


def difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Largest, of the logits of a folder's model as a tower and in transformers, both in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tower = Tower(TowerConfig(**shape_of(folder))).double()
    load_weights(tower, folder)
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
    # The reference casts its norms and positions to float32: here that name is float64.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = exact(tokens).logits
        found = tower.logits(tower(tokens[..., None]))[:, :, 0]
    assert expected.std() > 0.05
    return float((found - expected).abs().max())


def test_every_known_family_is_tested():
    assert {f"{family}ForCausalLM" for family, _ in MODELS.values()} == set(FAMILIES)


def test_one_file_or_many_older_names_and_a_tower_of_our_own_give_the_same_weights(tmp_path):
    whole, shards = saved(tmp_path / "whole"), saved(tmp_path / "shards", shards="20KB")
    assert len([*shards.glob("*.safetensors")]) > 2
    one, many = read_tower(whole), read_tower(shards)
    configured(rope_scaling={"type": "default"})(whole)  # as some keep it for older readers
    assert read_tower(whole).cfg == one.cfg
    configured(rope_scaling=None, rope_parameters=None, rope_theta=one.cfg.rope_base)(whole)  # as before v5
    older = read_tower(whole)
    save_tower(tmp_path / "ours", one, {"reads": "x", "trained_on": None})
    ours = read_tower(tmp_path / "ours")
    for tower in (many, older, ours):
        assert tower.cfg == one.cfg
        for name, weight in one.state_dict().items():
            expected = weight.half().float() if tower is ours else weight  # our format is in half precision
            assert torch.equal(tower.state_dict()[name], expected), name


def configured(**values: object) -> Callable[[Path], object]:
    """config.json with other values; None: without the key."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | values
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")

    return change


def weighted(name: str, weight: torch.Tensor | None) -> Callable[[Path], object]:
    """model.safetensors with another weight; None: without it."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors") | {name: weight}
        save_file({key: w for key, w in weights.items() if w is not None}, folder / "model.safetensors")

    return change


def cut_off(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000])


BROKEN = {
    "architecture": (configured(architectures=["GPTNeoXForCausalLM"]),
                     "'GPTNeoXForCausalLM' is not supported. Supported: LlamaForCausalLM"),
    "positions": (configured(rope_parameters={**LLAMA3, "rope_type": "yarn"}),
                  "rope scaling 'yarn' is not supported"),
    "two": (configured(architectures=["LlamaForCausalLM", "GPTNeoXForCausalLM"]), "is not supported"),
    "factor": (configured(rope_parameters={"rope_type": "linear"}), "rope scaling 'linear' lacks factor"),
    "lacks": (configured(hidden_size=None), "lacks hidden_size"),
    "bias": (configured(attention_bias=True), "attention_bias=true"),
    "window": (configured(sliding_window=64), "sliding_window=64"),
    "missing": (weighted("model.layers.1.mlp.up_proj.weight", None),
                "missing model.layers.1.mlp.up_proj.weight; unexpected none"),
    "extra": (weighted("model.layers.7.mlp.up_proj.weight", torch.zeros(2)),
              "missing none; unexpected model.layers.7.mlp.up_proj.weight"),
    "shape": (weighted("model.norm.weight", torch.zeros(7)), "do not fit this version's towers"),
    "truncated": (cut_off, "missing or damaged"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
               "Save the model as safetensors"),
    "kind": (configured(hidden_size="32"), "hidden_size='32' must be a whole number"),
    "null": (configured(num_hidden_layers=[2]), r"num_hidden_layers=\[2\] must be a whole number"),
    "word": (configured(rope_parameters="linear"), "config.json is damaged .AttributeError"),
    "name": (configured(architectures="GPTNeoXForCausalLM"), "architecture 'GPTNeoXForCausalLM' is not"),
    "parts": (weighted("model.layers.1.self_attn.q_proj.weight", torch.zeros(8, 7)), "fit one another"),
    "integers": (weighted("model.norm.weight", torch.zeros(32, dtype=torch.int8)), "does not hold finite"),
    "nan": (weighted("model.norm.weight", torch.full((32,), torch.nan)), "does not hold finite"),
    "index": (lambda f: (f / "model.safetensors").rename(f / "model.safetensors.index.json").write_text("{}"),
              "no weight_map"),
    "head": (weighted("lm_head.weight", torch.ones(300, 32)), "lm_head.weight is another matrix"),
    "fp8": (weighted("model.norm.weight", torch.zeros(32).to(torch.float8_e4m3fn)), "float8.*does not hold"),
    "two rotaries": (configured(rope_scaling={"rope_type": "linear", "factor": 2.0}),
                     "and rope_scaling=.*differ"),
    "damaged": (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_checkpoint_that_is_not_what_it_says_is_refused(tmp_path, change, words):
    folder = saved(tmp_path / "model")
    change(folder)
    with pytest.raises(DataError, match=words):
        read_tower(folder)


def test_a_head_that_repeats_the_embedding_an_index_of_another_model_and_an_unused_window_do_not_matter(
    tmp_path,
):
    folder = saved(tmp_path / "model")
    expected = read_tower(folder).state_dict()
    weighted("lm_head.weight", load_file(folder / "model.safetensors")["model.embed_tokens.weight"])(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}', "utf-8")
    found = read_tower(folder).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    qwen = saved(tmp_path / "qwen", next(kind for kind, (family, _) in MODELS.items() if family == "Qwen2"))
    configured(sliding_window=64, use_sliding_window=None)(qwen)  # transformers does not use it either
    read_tower(qwen)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"eos_token_id": 999}, "eos_token_id=999 is no id"),
     ({"eos_token_id": "0"}, "eos_token_id='0' is no id"),
     ({"bos_token_id": [[]]}, "is no id"), ({"eos_token_id": []}, "is no id")],
)  # fmt: skip
def test_begin_and_end_that_the_tokenizer_does_not_have_are_refused(tmp_path, values, words):
    folder = saved(tmp_path / "model")
    configured(**values)(folder)
    with pytest.raises(DataError, match=re.escape(words)):
        tower_info(folder)


def test_a_tokenizer_whose_ids_have_gaps_needs_rows_up_to_the_largest(tmp_path):
    folder = saved(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["g"] = 600
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json has 601 tokens.*300 rows"):
        tower_info(folder)


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(tmp_path):
    folder = saved(tmp_path / "model", vocab_size=290)
    with pytest.raises(DataError, match=r"tokenizer\.json has 300 tokens.*290 rows"):
        tower_info(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
        tower_info(folder)


def test_begin_and_end_are_those_of_the_model_and_stay_with_the_tokenizer(tmp_path):
    folder = saved(tmp_path / "model")
    subwords = Tokenizer.load(folder / "tokenizer.json")
    assert (subwords.bos, subwords.eos) == (0, 0)
    text = "why did helen give the blue wallet to the quiet singer"
    assert subwords.decode([0, *subwords.encode(text), 0]) == text
    subwords.save(tmp_path / "tokenizer.json")  # as in a store, without the model's config
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.bos, again.eos, again.fingerprint) == (0, 0, subwords.fingerprint)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"no config\.json beside it names bos_token_id"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.fixture
def own(in_tmp, utterances, codec, monkeypatch) -> Callable[..., EncodedDataset]:
    """Saves a language model as `model`, and has `train` find the dataset of its tokenizer."""

    def make(**changes: int) -> EncodedDataset:
        subwords = Tokenizer.load(saved(in_tmp / "model", **changes) / "tokenizer.json")
        dataset = prepare_dataset(in_tmp / "stores", utterances, units(codec, subwords), 30.0)
        monkeypatch.setattr("zipper.training.run.prepare", lambda cfg, clock, modalities: dataset)
        monkeypatch.setattr("zipper.training.run.load_modalities", lambda cfg, folder: dataset.modalities)
        return dataset

    return make


def test_a_pretrained_tower_is_zipped_trained_and_recognises(own, in_tmp, utterances, codec):
    """One token begins and ends its texts, and its embedding has more rows than its tokenizer."""
    dataset = own(vocab_size=320)
    words = [
        "model.towers.text={init: model, frozen: true, interval: 1}",
        "model.zip={heads: 2, whiten: true}",
        "model.towers.speech={layers: 3, width: 24, heads: 2, kv_heads: 2, hidden: 32, interval: 1}",
        "train={tokens: 200, steps: 2, validate_every: 2, tasks: {asr: 1}, accelerator: cpu}",
        "log.wandb=disabled",
    ]  # fmt: skip
    cfg = resolve(load_config(None, words), dataset)
    assert (cfg.model.towers["text"].vocabulary, cfg.model.towers["text"].specials) == (320, [0, 0])
    result = train(load_config(None, words), "test")["asr"]
    assert result["utterances"] == 6
    before = read_tower(Path("model")).state_dict()
    after = torch.load("build/runs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, weight in before.items():
        assert torch.equal(after[f"model.towers.text.{name}"], weight), name
    # A store of another tokenizer is refused.
    other = prepare_dataset(in_tmp / "others", utterances, units(codec, Tokenizer.train(["a b"], 40)), 30.0)
    with pytest.raises(DataError, match="was trained on"):
        resolve(load_config(None, words), other)


def test_pretraining_goes_on_from_a_model_and_exports_what_can_be_zipped(own):
    dataset = own()
    words = [
        "model.modalities=[text]", "model.towers.text.init=model", "export=mine", "log.wandb=disabled",
        "train={tokens: 200, steps: 2, validate_every: 2, tasks: {text: 1}, accelerator: cpu}",
    ]  # fmt: skip
    pretrain(load_config(None, words), "test")
    before, after = (read_tower(Path(name)) for name in ("model", "mine"))
    assert not torch.equal(before.embedding.weight, after.embedding.weight)
    assert (before.embedding.weight - after.embedding.weight).abs().max() < 0.1  # gone on, not begun anew
    assert Tokenizer.load(Path("mine/tokenizer.json")).fingerprint == dataset.modalities["text"].fingerprint
    cfg = load_config(None, ["model.towers.text.init=mine", "train.tasks.asr=1"])
    assert resolve(cfg, dataset).model.towers["text"].layers == 3


def test_a_tower_is_not_written_where_a_language_model_would_be_read_in_its_place(own):
    own()
    words = ["model.modalities=[text]", "model.towers.text.init=model", "train.tasks={asr: 0, text: 1}"]
    with pytest.raises(ConfigError, match=r"model holds a pre-trained language model .*Name another folder"):
        pretrain(load_config(None, [*words, "export=model", "train.accelerator=cpu"]), "test")
    with pytest.raises(ConfigError, match="would be read in place"):
        save_tower(Path("model"), read_tower(Path("model")), {"reads": "x"})


@pytest.mark.parametrize("key", ["sha256", "shape", "reads"])
def test_a_description_of_a_tower_that_lacks_something_is_damaged(tmp_path, key):
    save_tower(tmp_path / "ours", read_tower(saved(tmp_path / "whole")), {"reads": "x", "trained_on": None})
    info = json.loads((tmp_path / "ours/tower.json").read_text(encoding="utf-8"))
    del info[key]
    (tmp_path / "ours/tower.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match=f"tower.json is damaged: it lacks {key}"):
        read_tower(tmp_path / "ours")


def test_a_hub_that_cannot_be_reached_says_where_the_model_would_be(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DataError, match=rf"no route to host\).*{tmp_path}/models--nobody--nothing"):
        model_folder("nobody/nothing")
    assert model_folder(str(tmp_path)) == tmp_path


def test_a_model_of_the_hub_is_fetched_with_its_revision_and_without_code(monkeypatch, tmp_path):
    asked = {}

    def download(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("some/model@v2") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("some/model", "v2")
    assert not any("py" in pattern or "bin" in pattern for pattern in asked["patterns"])


def test_a_hub_that_refuses_an_upload_is_told_with_the_way_to_log_in(monkeypatch):
    def refuse(self, name, **_):
        raise RuntimeError("401")  # the client has errors of its own

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(DataError, match=r"401.*hf auth login"):
        push(ROOT / "assets" / "speech-tower", "me/mine", private=False)


def test_an_interval_that_leaves_no_zip_in_the_models_layers_is_refused(tmp_path, dataset, codec):
    folder = saved(tmp_path / "model")
    dataset.modalities["text"].tokenizer.save(tmp_path / "tokenizer.json")
    words = [f"model.towers.text={{init: {folder}, interval: 4}}", "train.tasks.asr=1"]
    subwords = Tokenizer.load(folder / "tokenizer.json")
    parts = {**dataset.info["fingerprint"], "tokenizer": subwords.fingerprint}
    other = replace(dataset, info={**dataset.info, "fingerprint": parts}, modalities=units(codec, subwords))
    with pytest.raises(ConfigError, match="interval=4 leaves no zip in a tower of layers=3"):
        resolve(load_config(None, words), other)


def test_a_zipped_model_that_was_pushed_is_what_comes_back(model_hub):
    """Only what was allowed arrives, and it is all that generating needs."""
    assert push(ROOT / "assets" / "zipped", "me/mine", private=True).endswith("/me/mine")
    assert (model_hub / "me" / "private").is_file()
    folders = (ROOT / "assets" / "zipped", model_folder("me/mine"))
    here, there = (Zipper.from_pretrained(folder) for folder in folders)
    assert there.modalities["text"].fingerprint == here.modalities["text"].fingerprint
    for name, weight in here.network.state_dict().items():
        assert torch.equal(there.network.state_dict()[name], weight), name
    card = (model_hub / "me/mine/README.md").read_text(encoding="utf-8")
    for part in (
        "license: apache-2.0", "# mine", "speech recognition, speech synthesis", "configs/joint.yaml",
        '"me/mine"', "| test/asr/wer | 0.1 % |", "| test/tts/wer | 12.0 % |", "Trained on: spoken",
    ):  # fmt: skip
        assert part in card, part
    for task in ("text>image", "image>text"):
        assert task in model_card(ROOT / "assets" / "three-towers", "me/three")


def test_a_model_that_is_pushed_over_another_one_is_what_comes_back(model_hub):
    """Also in a repository with the codec of the one before."""
    push(ROOT / "assets" / "real", "me/mine", private=True)
    assert (model_hub / "me/mine/codec.json").is_file()
    push(ROOT / "assets" / "zipped", "me/mine", private=True)
    recording = ROOT / "results/samples/test-00000-original.flac"
    assert Zipper.from_pretrained("me/mine").transcribe(recording).startswith("every wednesday")


def test_a_card_names_models_of_the_hub_alone_and_no_licence_of_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "towers/text")
    assert "license:" not in model_card(tmp_path / "towers/text", "me/lm")
    towers = {"text": {"init": "towers/text"}, "speech": {"init": "me/other@v1"}}
    (tmp_path / "zipper.json").write_text(
        json.dumps({"config": {"model": {"towers": towers}}}), encoding="utf-8"
    )
    card = model_card(tmp_path, "me/mine")
    assert "base_model: [me/other]" in card
    assert "license:" not in card
