"""Rows of a key-value cache: beams exchange them, and a continuous batch lets them join and leave."""

import itertools

import torch
from torch import Tensor

from zipper.generation.cache import BLOCK, KVCache
from zipper.models.tower import KeyValue


def exchange(cache: KVCache, name: str, rows: Tensor, start: int) -> None:
    """As `select`, for rows int64 [B] that take the place of rows with the same prompt: beams, which
    differ in what tower `name` has generated alone, from timestep `start` of its backbone on. Prompts are
    long, and stay where they are."""
    backbone = cache.model.backbone(name)
    for kept in (cache.biases, cache.valid, cache.count, cache.end_time, cache.last_states):
        kept.update({key: x[rows] for key, x in kept.items() if key in (name, backbone)})
    if name in cache.cross_biases:
        cache.cross_biases[name] = cache.cross_biases[name].select(rows)
    new = slice(start, cache.length[backbone])
    own = [kv for key, kv in cache.layer_kv.items() if key[0] == backbone]
    read = [kv for key, kv in cache.zip_kv.items() if key[1][1] == name]
    for buffer in itertools.chain(*own, *read):
        buffer[:, :, new] = buffer[rows, :, new]


def select(cache: KVCache, rows: Tensor) -> None:
    """Keep the rows int64 [N] in this order. A row may be dropped or repeated."""
    cache.multimodal = cache.multimodal[rows]
    cache.biases = {name: bias[rows] for name, bias in cache.biases.items()}
    cache.cross_biases = {name: cross_bias.select(rows) for name, cross_bias in cache.cross_biases.items()}
    for kept in (cache.valid, cache.count, cache.end_time, cache.last_states):
        kept.update({name: tensor[rows] for name, tensor in kept.items()})
    cache.layer_kv = {key: KeyValue(k[rows], v[rows]) for key, (k, v) in cache.layer_kv.items()}
    cache.zip_kv = {key: KeyValue(k[rows], v[rows]) for key, (k, v) in cache.zip_kv.items()}


def join(cache: KVCache, other: KVCache) -> None:
    """Append the rows of another cache of the same model. Neither may be compiled to a graph."""
    for backbone in cache.valid:
        room = max(one.valid[backbone].shape[1] for one in (cache, other))
        for one in (cache, other):
            if room > one.valid[backbone].shape[1]:
                one.resize(backbone, room)
        cache.length[backbone] = max(cache.length[backbone], other.length[backbone])
    for mine, theirs in ((cache.end_time, other.end_time), (cache.last_states, other.last_states)):
        for name in {*mine, *theirs}:  # a tower without tokens has none
            parts = [kept.get(name) for kept in (mine, theirs)]
            like = next(part for part in parts if part is not None)
            counts = len(cache.multimodal), len(other.multimodal)
            mine[name] = torch.cat(
                [
                    like.new_zeros(n, *like.shape[1:]) if part is None else part
                    for n, part in zip(counts, parts, strict=True)
                ]
            )
    cache.multimodal = torch.cat([cache.multimodal, other.multimodal])
    for mine, theirs in ((cache.valid, other.valid), (cache.count, other.count)):
        mine.update({name: torch.cat([rows, theirs[name]]) for name, rows in mine.items()})
    cache.layer_kv = {key: _joined(kv, other.layer_kv[key]) for key, kv in cache.layer_kv.items()}
    cache.zip_kv = {key: _joined(kv, other.zip_kv[key]) for key, kv in cache.zip_kv.items()}
    cache.biases, cache.cross_biases = {}, {}


def trim(cache: KVCache) -> None:
    """Drop timesteps in which no row has a token, at the start (whole blocks) and the end."""
    for backbone, valid in cache.valid.items():
        used = valid.any(0).nonzero()[:, 0].tolist()
        start = used[0] // BLOCK * BLOCK if used else 0
        cache.length[backbone] = used[-1] + 1 - start if used else 0
        if start:
            cache.valid[backbone] = valid[:, start:].contiguous()
            for kept, key, _, _ in cache.buffers(backbone):
                kept[key] = KeyValue(*(buffer[:, :, start:].contiguous() for buffer in kept[key]))
    cache.biases, cache.cross_biases = {}, {}


def _joined(rows: KeyValue, more: KeyValue) -> KeyValue:
    return KeyValue(torch.cat([rows.key, more.key]), torch.cat([rows.value, more.value]))
