"""`zipper bench-encoding`: speed of `zipper prepare` against the codec alone, and of two processes."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from encodec import EncodecModel

from reproduce import ROOT
from reproduce.bench.record import record
from zipper.codecs.load import load_codec
from zipper.commit import commit
from zipper.config import CodecConfig, RunConfig
from zipper.corpora.open import open_corpus
from zipper.corpora.utterance import Utterance
from zipper.data.dataset import corpus_hash
from zipper.errors import ConfigError

UTTERANCES = 320  # 20 shards


def bench_encoding(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Benchmarks encodec_24khz (random weights) on training utterances of the synthetic corpus.

    Compares a bare loop over the model, `zipper prepare` with one process, and with two; one thread each.
    """
    code = commit()
    chosen = [u for u in open_corpus(cfg) if u.split == "train"][:UTTERANCES]
    if len(chosen) < UTTERANCES:
        raise ConfigError(f"data.train={len(chosen)} is too few: the bench encodes {UTTERANCES} utterances.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(cfg.seed)
        weights = folder / "random.th"
        torch.save(EncodecModel.encodec_model_24khz(pretrained=False).state_dict(), weights)
        codec = CodecConfig(name="encodec_24khz", weights=str(weights), bandwidth_kbps=1.5)
        config = _config(folder, chosen, codec)
        print("a bare loop ...", flush=True)
        bare = _bare(chosen, codec)
        rates = {}
        for processes in (1, 2):
            print(f"zipper prepare, {processes} process(es) ...", flush=True)
            rates[processes] = _prepared(folder, config, processes)
    figures = {
        "bare": round(bare, 2), "one": round(rates[1], 2), "two": round(rates[2], 2),
        "one_to_bare": round(rates[1] / bare, 3), "two_to_one": round(rates[2] / rates[1], 3),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    fingerprint = corpus_hash(chosen, cfg.build)
    content = {"figures": figures, "utterances": len(chosen), "threads": 1, "data_fingerprint": fingerprint}
    return record(cfg, "bench-encoding", command, code, content)


def _config(folder: Path, chosen: list[Utterance], codec: CodecConfig) -> Path:
    lines = ["id\taudio\ttext\tsplit"]
    for i, u in enumerate(chosen):  # every split needs an utterance
        split = {0: "dev", 1: "test"}.get(i, "train")
        lines.append(f"{u.id}\t{u.audio}\t{u.text}\t{split}")
    (folder / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = folder / "config.yaml"
    settings = {"name": codec.name, "weights": codec.weights, "bandwidth_kbps": codec.bandwidth_kbps}
    data = {"corpus": "manifest", "folder": str(folder / "list.tsv")}
    content = {"data": data, "codec": settings, "train": {"accelerator": "cpu"}}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def _bare(chosen: list[Utterance], codec: CodecConfig) -> float:
    """Hours of audio per hour of the model alone, one utterance at a time, without reading."""
    made = load_codec(codec)
    waves = [u.wave(made.sample_rate) for u in chosen]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.monotonic()
    with torch.no_grad():
        for wave in waves:
            made.model.encode(wave[None, None])
    took = time.monotonic() - started
    torch.set_num_threads(threads)
    return sum(map(len, waves)) / made.sample_rate / took


def _prepared(folder: Path, config: Path, processes: int) -> float:
    """Hours of audio per hour that `zipper prepare` prints, with reading and writing, without start-up."""
    out = subprocess.run(
        [sys.executable, "-m", "zipper", "prepare", str(config), f"build={folder}/{processes}",
         f"train.devices={processes}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, check=True, encoding="utf-8"
    )  # fmt: skip
    found = re.search(r"encoded .* of audio, ([\d.]+) hours per hour", out.stdout)
    assert found, out.stdout
    return float(found[1])
