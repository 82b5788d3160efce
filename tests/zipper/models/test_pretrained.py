"""Language models of elsewhere as towers: equal to transformers, strict, and from a folder or the hub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from conftest import units
from reproduce import ROOT
from zipper import hub
from zipper.config import TowerConfig, load_config
from zipper.corpora.grammar import sentences
from zipper.data.encode import prepare_dataset
from zipper.errors import ConfigError, DataError
from zipper.generation.zipper import Zipper
from zipper.hub import model_folder, push
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.hf import FAMILIES, shape_of
from zipper.models.pretrained import load_weights, read_tower, save_tower, tower_info, with_shape_of
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.training.run import pretrain, train

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
MODELS = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1,
                          "hidden_size": 48, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"head_dim": 16, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
}  # fmt: skip


def reference(kind: str, **changes) -> transformers.PreTrainedModel:
    """A small random model, every norm and bias moved from where they start."""
    family, settings = MODELS[kind]
    torch.manual_seed(0)
    cfg = getattr(transformers, f"{family}Config")(**{**SMALL, **settings, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(cfg).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def tokenizer(size: int = 300) -> HFTokenizer:
    """As language models have it: byte-level, one token for begin and end."""
    made = HFTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = sentences(seed=3)
    made.train_from_iterator(
        [next(texts) for _ in range(200)],
        trainers.BpeTrainer(vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    return made


def saved(folder: Path, kind: str = "smollm2", shards: str = "5GB", **changes) -> Path:
    reference(kind, bos_token_id=0, eos_token_id=0, **changes).save_pretrained(folder, max_shard_size=shards)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers_in_float64(kind, tmp_path, monkeypatch):
    reference(kind).save_pretrained(tmp_path)
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
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    (whole / "config.json").write_text(
        json.dumps({**config, "rope_theta": rope["rope_theta"]}), encoding="utf-8"
    )  # before v5
    older = read_tower(whole)
    save_tower(tmp_path / "ours", one, {"reads": "x", "trained_on": None})
    ours = read_tower(tmp_path / "ours")
    for tower in (many, older, ours):
        assert tower.cfg == one.cfg
        for name, weight in one.state_dict().items():
            expected = weight.half().float() if tower is ours else weight  # our format is in half precision
            assert torch.equal(tower.state_dict()[name], expected), name


def broken(folder: Path, change: str) -> None:
    config, weights = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")),
        load_file(folder / "model.safetensors"),
    )
    if change == "architecture":
        config["architectures"] = ["GPTNeoXForCausalLM"]
    elif change == "positions":
        config["rope_parameters"]["rope_type"] = "yarn"
    elif change == "lacks":
        del config["hidden_size"]
    elif change == "bias":
        config["attention_bias"] = True
    elif change == "window":
        config["sliding_window"] = 64
    elif change == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif change == "extra":
        weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    elif change == "shape":
        weights["model.norm.weight"] = torch.zeros(7)
    elif change == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000])
        return
    elif change == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        return
    elif change == "damaged":
        (folder / "config.json").write_text("{", encoding="utf-8")
        return
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("architecture", "'GPTNeoXForCausalLM' is not supported. Supported: LlamaForCausalLM"),
        ("positions", "rope scaling 'yarn' is not supported"),
        ("lacks", "lacks hidden_size"),
        ("bias", "attention_bias=true"),
        ("window", "sliding_window=64"),
        ("missing", r"missing model.layers.1.mlp.up_proj.weight; unexpected none"),
        ("extra", r"missing none; unexpected model.layers.7.mlp.up_proj.weight"),
        ("shape", "do not fit this version's towers"),
        ("truncated", "missing or damaged"),
        ("pickle", "Save the model as safetensors"),
        ("damaged", "is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_is_refused(tmp_path, change, words):
    folder = saved(tmp_path / "model")
    broken(folder, change)
    with pytest.raises(DataError, match=words):
        read_tower(folder)


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


def test_a_pretrained_tower_is_zipped_trained_and_recognises(tmp_path, utterances, codec, monkeypatch):
    """One token begins and ends its texts, and its embedding has more rows than its tokenizer."""
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "model", vocab_size=320)
    subwords = Tokenizer.load(folder / "tokenizer.json")
    dataset = prepare_dataset(tmp_path / "stores", utterances, units(codec, subwords), 30.0)
    monkeypatch.setattr("zipper.training.run.prepare", lambda cfg, clock, modalities: dataset)
    monkeypatch.setattr("zipper.training.run.load_modalities", lambda cfg: dataset.modalities)
    words = [
        f"model.towers.text={{init: {folder}, frozen: true, interval: 1}}",
        "model.zip={heads: 2, whiten: true}",
        "model.towers.speech={layers: 3, width: 24, heads: 2, kv_heads: 2, hidden: 32, interval: 1}",
        "train={tokens: 200, steps: 2, validate_every: 2, tasks: {asr: 1}, accelerator: cpu}",
        "log.wandb=disabled",
    ]  # fmt: skip
    cfg = resolve(load_config(None, words), dataset)
    assert (cfg.model.towers["text"].vocabulary, cfg.model.towers["text"].specials) == (320, [0, 0])
    result = train(load_config(None, words), "test")["asr"]
    assert result["utterances"] == 6
    before = read_tower(folder).state_dict()
    after = torch.load("build/runs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, weight in before.items():
        assert torch.equal(after[f"model.towers.text.{name}"], weight), name
    # A store of another tokenizer is refused.
    other = prepare_dataset(tmp_path / "others", utterances, units(codec, Tokenizer.train(["a b"], 40)), 30.0)
    with pytest.raises(DataError, match="was trained on"):
        resolve(load_config(None, words), other)


def test_pretraining_goes_on_from_a_model_and_exports_what_can_be_zipped(
    tmp_path, utterances, codec, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "model")
    subwords = Tokenizer.load(folder / "tokenizer.json")
    dataset = prepare_dataset(tmp_path / "stores", utterances, units(codec, subwords), 30.0)
    monkeypatch.setattr("zipper.training.run.prepare", lambda cfg, clock, modalities: dataset)
    monkeypatch.setattr("zipper.training.run.load_modalities", lambda cfg: dataset.modalities)
    words = [
        "model.modalities=[text]", f"model.towers.text.init={folder}", "export=mine", "log.wandb=disabled",
        "train={tokens: 200, steps: 2, validate_every: 2, tasks: {text: 1}, accelerator: cpu}",
    ]  # fmt: skip
    pretrain(load_config(None, words), "test")
    before, after = read_tower(folder), read_tower(tmp_path / "mine")
    assert not torch.equal(before.embedding.weight, after.embedding.weight)
    assert (before.embedding.weight - after.embedding.weight).abs().max() < 0.1  # gone on, not begun anew
    assert Tokenizer.load(tmp_path / "mine" / "tokenizer.json").fingerprint == subwords.fingerprint
    cfg = load_config(None, ["model.towers.text.init=mine", "train.tasks.asr=1"])
    assert resolve(cfg, dataset).model.towers["text"].layers == 3


def test_a_shape_that_the_config_asks_for_must_be_the_models(tmp_path):
    folder = saved(tmp_path / "model")
    with pytest.raises(ConfigError, match="layers=4, but the tower in"):
        with_shape_of(TowerConfig(layers=4), folder)


def test_a_hub_that_cannot_be_reached_says_where_the_model_would_be(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(DataError, match=rf"no route to host\).*{tmp_path}/models--nobody--nothing"):
        model_folder("nobody/nothing")
    assert model_folder(str(tmp_path)) == tmp_path


def test_a_model_of_the_hub_is_fetched_with_its_revision_and_without_code(monkeypatch, tmp_path):
    asked = {}

    def download(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert model_folder("some/model@v2") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("some/model", "v2")
    assert not any("py" in pattern or "bin" in pattern for pattern in asked["patterns"])


def test_push_uploads_what_was_exported_and_nothing_else(monkeypatch, tmp_path):
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: sent.update(name=name, **how))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **what: sent.update(what))
    monkeypatch.setattr(HfApi, "upload_file", lambda self, **what: sent.update(card=what["path_in_repo"]))
    with pytest.raises(ConfigError, match="holds no exported model"):
        push(tmp_path, "me/mine", private=True)
    assert push(Path("assets/speech-tower").resolve(), "me/mine", private=True).endswith("/me/mine")
    assert (sent["name"], sent["private"], sent["repo_id"]) == ("me/mine", True, "me/mine")
    assert sent["card"] == "README.md"

    def refuse(self, name, **_):
        raise RuntimeError("401")  # the client has errors of its own

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(DataError, match="hf auth login"):
        push(Path("assets/speech-tower").resolve(), "me/mine", private=False)


def test_an_interval_that_leaves_no_zip_in_the_models_layers_is_refused(tmp_path, dataset, codec):
    folder = saved(tmp_path / "model")
    dataset.modalities["text"].tokenizer.save(tmp_path / "tokenizer.json")
    words = [f"model.towers.text={{init: {folder}, interval: 4}}", "train.tasks.asr=1"]
    subwords = Tokenizer.load(folder / "tokenizer.json")
    parts = {**dataset.info["fingerprint"], "tokenizer": subwords.fingerprint}
    other = replace(dataset, info={**dataset.info, "fingerprint": parts}, modalities=units(codec, subwords))
    with pytest.raises(ConfigError, match="interval=4 leaves no zip in a tower of layers=3"):
        resolve(load_config(None, words), other)


def test_a_zipped_model_that_was_pushed_is_what_comes_back(monkeypatch, tmp_path):
    """A folder stands in for the hub: only what was allowed arrives, and it is all that generating needs."""

    def upload(self, repo_id, folder_path, allow_patterns, commit_message):
        for pattern in allow_patterns:
            for file in Path(folder_path).glob(pattern):
                (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / repo_id)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: None)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    cards = []
    monkeypatch.setattr(
        HfApi, "upload_file", lambda self, path_or_fileobj, **how: cards.append(path_or_fileobj)
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **how: str(tmp_path / name))
    push(ROOT / "assets" / "zipped", "me/mine", private=True)
    here, there = (
        Zipper.from_pretrained(ROOT / "assets" / "zipped"),
        Zipper.from_pretrained(model_folder("me/mine")),
    )
    assert there.modalities["text"].fingerprint == here.modalities["text"].fingerprint
    for name, weight in here.network.state_dict().items():
        assert torch.equal(there.network.state_dict()[name], weight), name
    (card,) = cards
    for part in (
        "license: apache-2.0",
        "# mine",
        "speech recognition, speech synthesis",
        "configs/joint.yaml",
        '"me/mine"',
        "| test/asr/wer | 0.1 % |",
        "| test/tts/wer | 12.0 % |",
        "Trained on: spoken",
    ):
        assert part in card.decode(), part
