"""Language models as the hub has them: small, random, of every family, in folders with their tokenizers."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from zipper.corpora.grammar import sentences

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
