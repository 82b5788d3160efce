"""Key-value cache of a multimodal model.

The strict order makes all states append-only: later tokens never change the state of an earlier one. Each
tower caches the keys and values of its own layers, and each zip those of its source tower. To generate one
modality, only its own tower runs. Towers that share a backbone (Single Decoder) share the cache.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from zipper.generation.native_step import NativeStep
from zipper.generation.single_step import CrossAttentionBias, SingleStep, as_bias
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.models.tower import KeyValue, LayerCache
from zipper.models.zip_block import TimePositions

MAX_GRAPHS = 1024  # compiled shapes; a full graph fails beyond dynamo's default of 8
ALIGNMENT = 8  # timesteps; GPU kernels need masks of an aligned length
BLOCK = 64  # timesteps by which buffers grow, so that shapes change once per block


class KVCache:
    """Cache that grows by `extend`. Rows may be ragged and may extend different towers: an invalid token
    occupies a timestep, but is never attended to."""

    def __init__(self, model: MultimodalModel, multimodal: Tensor) -> None:
        """multimodal bool [B]: whether each document is multimodal. It is fixed before the first token."""
        self.model, self.multimodal = model, multimodal
        self.rows_each = 1  # of a prompt; 2 with guidance
        self.native = self.graph = False  # see `set_compiled`
        # Towers that still generate. Only their zips need cached keys and values.
        self.query_towers = set(model.names)
        self.layer_kv: dict[tuple[str, int], KeyValue] = {}  # (backbone, layer)
        self.zip_kv: dict[tuple[int, Pair], KeyValue] = {}  # (stage, (query, source))
        empty = torch.zeros(len(multimodal), 0, dtype=torch.bool, device=multimodal.device)
        self.valid: dict[str, Tensor] = dict.fromkeys(model.names, empty)  # [B, capacity] of each backbone
        self.count: dict[str, Tensor] = dict.fromkeys(model.names, empty.sum(1, keepdim=True))  # [B, 1] valid
        self.end_time: dict[str, Tensor] = {}  # [B, 1] end of the last valid token in seconds
        # [B, D] state of each row's last valid token, for the next-modality head.
        self.last_states: dict[str, Tensor] = {}
        # (states [B, T, D], valid [B, T]) of the prompt, by modality, for heads of CTC; rows as prefilled.
        self.states: dict[str, tuple[Tensor, Tensor]] = {}
        self.single_steps: dict[str, SingleStep] = {}
        self.biases: dict[str, Tensor] = {}  # [B, 1, 1, capacity] self-attention of each backbone
        self.cross_biases: dict[str, CrossAttentionBias] = {}  # by source tower
        self.length: dict[str, int] = dict.fromkeys(model.names, 0)  # timesteps, equal for all rows

    def set_compiled(self, compiled: bool) -> None:
        """Whether to compile: on a CPU `NativeStep` (in float32), elsewhere one graph of `extend`."""
        device, dtype = self.multimodal.device, next(self.model.parameters()).dtype
        self.native = compiled and device.type == "cpu" and dtype == torch.float32
        self.graph = compiled and device.type != "cpu"

    def extend(self, name: str, tokens: Tensor, valid: Tensor) -> Tensor:
        """Append tokens int64 [B, T, Q] of tower `name` to the document. valid bool [B, T], padded on the
        right.

        Returns their states [B, T, D] for the tower's `logits`. They equal those of the model run on the
        whole document.
        """
        self.cross_biases.pop(name, None)
        own = self.model.reader(name) is self.model.tower(name)  # SingleStep knows no other
        if valid.shape[1] == 1 and not self.graph and own:
            return self._extend_by_one(name, tokens[:, 0], valid)[:, None]
        backbone = self.model.backbone(name)
        start, end = self.length[backbone], self.length[backbone] + valid.shape[1]
        self._grow(backbone, end)
        at = torch.arange(start, end, device=valid.device)
        self.valid[backbone].index_copy_(1, at, valid)
        position = self.count[backbone] + (valid.cumsum(1) - 1).clamp(min=0)  # [B, T]
        self.count[backbone] = self.count[backbone] + valid.sum(1, keepdim=True)
        self.length[backbone] = end
        read = _round_up(end, BLOCK)
        mask = self.valid[backbone][:, None, :read]
        if valid.shape[1] > 1:
            mask = mask & (torch.arange(read, device=valid.device) <= at[:, None])
        time, next_time, self.end_time[backbone] = self.model.times(
            name, tokens, valid, self.end_time.get(backbone)
        )
        self.biases.pop(backbone, None)  # only `_extend_by_one` updates it
        run = compiled() if self.graph else KVCache._run
        states = run(self, name, tokens, position, (time, next_time), mask, at, read)
        if self.model.next_modality_heads:
            self._update_last_states(name, states, valid)
        return states

    def logits(self, name: str, states: Tensor) -> Tensor:
        """Logits [B, Q, V] of the states [B, D] of one timestep."""
        step = self.single_steps.get(name)
        return step.logits(states) if step else self.model.tower(name).logits(states)

    def _run(
        self,
        name: str,
        tokens: Tensor,
        position: Tensor,
        times: tuple[TimePositions, TimePositions],
        mask: Tensor,
        at: Tensor,
        read: int,
    ) -> Tensor:
        model, tower, backbone = self.model, self.model.reader(name), self.model.backbone(name)
        rotation, (time, next_time) = tower.rotation(position), times
        source = {  # source towers with cached tokens
            other: (_round_up(self.length[other], BLOCK), self._cross_mask(other, tokens.shape[1]))
            for other in model.names
            if (name, other) in model.directions_used and self.length[other]
        }
        own = [LayerCache(self.layer_kv[backbone, index], at, read) for index in range(len(tower.layers))]

        def layer(index: int, x: Tensor) -> Tensor:
            return tower.layers[index](x, rotation, mask, own[index])

        def zips(stage: int, before: Tensor) -> Tensor:
            x = before
            for other, (timesteps, cross_mask) in source.items():
                keys = KeyValue(*(b[:, :, :timesteps] for b in self.zip_kv[stage, (name, other)]))
                x = x + model.zip(stage, name, other)(before, next_time, keys, cross_mask)
            return x

        x = model.project(name, tower.embed(tokens), self.multimodal)
        return model.outputs(name, tokens, self._run_stages(name, x, layer, zips, time, at, read))

    def _run_stages(
        self,
        name: str,
        x: Tensor,
        layer: Callable[[int, Tensor], Tensor],
        zips: Callable[[int, Tensor], Tensor],
        time: TimePositions,
        at: Tensor,
        read: int,
    ) -> Tensor:
        """States of tower `name` after its layers and zips. Caches keys and values for the zips of the other
        towers. x [B, T, D] or [B, D]."""
        queries = self._queries(name)

        def store_and_zip(stage: int, states: dict[str, Tensor]) -> dict[str, Tensor]:
            before = states[name]
            for other in queries:
                block = self.model.zip(stage, other, name)
                projected = block.project_source(before if before.dim() == 3 else before[:, None], time)
                LayerCache(self.zip_kv[stage, (other, name)], at, read).store(projected)
            return {name: zips(stage, before)}

        return self.model.run_stages({name: x}, lambda _, index, x: layer(index, x), store_and_zip)[name]

    def _queries(self, name: str) -> list[str]:
        """Towers that still generate and attend to tower `name`."""
        return [
            o for o in self.model.names if (o, name) in self.model.directions_used and o in self.query_towers
        ]

    def _extend_by_one(self, name: str, tokens: Tensor, valid: Tensor) -> Tensor:
        """`extend` by one timestep with `SingleStep`: tokens [B, Q], valid [B, 1] -> states [B, D]."""
        if name not in self.single_steps:
            self.single_steps[name] = (NativeStep if self.native else SingleStep)(self.model, name)
        model, step, backbone = self.model, self.single_steps[name], self.model.backbone(name)
        timestep = self.length[backbone]
        self._grow(backbone, timestep + 1)
        at = torch.arange(timestep, timestep + 1, device=valid.device)
        self.valid[backbone].index_copy_(1, at, valid)
        position, self.count[backbone] = self.count[backbone], self.count[backbone] + valid
        self.length[backbone] = timestep + 1
        time, next_time, self.end_time[backbone] = model.times(
            name, tokens[:, None], valid, self.end_time.get(backbone)
        )
        x = step.embed(tokens, self.multimodal)
        bias = self._bias(backbone, valid, at, x.dtype)
        read = bias.shape[-1]
        own = [LayerCache(self.layer_kv[backbone, index], at, read) for index in range(len(step.layers))]
        source = {}
        for query, other in model.directions_used:
            if query == name and self.length[other]:
                cross_bias = self._cross_bias(other, x.dtype)
                pairs = (self.zip_kv[stage, (name, other)] for stage in range(model.stages))
                read_source = cross_bias.bias.shape[-1]
                source[other] = (
                    cross_bias,
                    [KeyValue(*(b[:, :, :read_source] for b in pair)) for pair in pairs],
                )
        query_position = step.query_position(next_time.time) if source else None

        rotation = step.rotary(position)
        if isinstance(step, NativeStep) and not self._queries(name):
            state = step.run(x, timestep, rotation, bias, own, query_position, source)
            return self._with_last_state(name, state, valid)

        def zips(stage: int, before: Tensor) -> Tensor:
            x = before
            for other, (cross_bias, keys) in source.items():
                y = step.zips[stage, other](before, query_position, keys[stage], cross_bias)
                x = y if x is before else x + (y - before)
            return x

        x = self._run_stages(
            name, x, lambda i, x: step.layers[i](x, rotation, bias, own[i]), zips, time, at, read
        )
        return self._with_last_state(name, step.finish(x), valid)

    def _with_last_state(self, name: str, state: Tensor, valid: Tensor) -> Tensor:
        """States [B, D] of one timestep, which are kept for the next-modality head."""
        if self.model.next_modality_heads:
            self.last_states[name] = torch.where(valid, state, self.last_states.get(name, state))
        return state

    def _bias(self, backbone: str, valid: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
        """Attention bias [B, 1, 1, read] over the backbone's timesteps, including the latest, `at` [1]."""
        known = self.biases.get(backbone)
        if known is None or known.shape[-1] != self.valid[backbone].shape[1]:
            known = self.biases[backbone] = as_bias(self.valid[backbone], dtype)
        else:
            known.index_copy_(3, at, as_bias(valid, dtype))
        return known[..., : _round_up(self.length[backbone], ALIGNMENT)]

    def _cross_bias(self, other: str, dtype: torch.dtype) -> CrossAttentionBias:
        """Attention bias over the timesteps of the source tower `other`."""
        if other not in self.cross_biases:
            valid = self.valid[other][:, : _round_up(self.length[other], ALIGNMENT)]
            self.cross_biases[other] = CrossAttentionBias.of(valid & self.multimodal[:, None], dtype)
        return self.cross_biases[other]

    def _update_last_states(self, name: str, states: Tensor, valid: Tensor) -> None:
        """Keep the state of each row's last valid token."""
        rows, count = torch.arange(len(valid), device=valid.device), valid.sum(1)
        latest = states[rows, (count - 1).clamp(min=0)]
        before = self.last_states.get(name, latest)
        self.last_states[name] = torch.where((count > 0)[:, None], latest, before)

    def _cross_mask(self, other: str, tokens: int) -> Tensor:
        """Mask bool [B, tokens, read] of the cached tokens of the source tower, False in unimodal
        documents."""
        valid = self.valid[other][:, : _round_up(self.length[other], BLOCK)] & self.multimodal[:, None]
        return valid[:, None].expand(-1, tokens, -1)

    def _grow(self, backbone: str, timesteps: int) -> None:
        """Grow the buffers of a backbone, and of the zips whose source it is, to at least `timesteps`."""
        have = self.valid[backbone].shape[1]
        if timesteps <= have:
            return
        self.resize(backbone, _round_up(max(timesteps, 2 * have), BLOCK))

    def reserve(self, name: str, timesteps: int) -> None:
        """Make room for so many further timesteps of tower `name` at once, instead of step by step. A graph
        is compiled for each size, so that there room grows by doubling."""
        if self.graph:
            return
        backbone = self.model.backbone(name)
        room = _round_up(self.length[backbone] + timesteps, BLOCK)
        if room > self.valid[backbone].shape[1]:
            self.resize(backbone, room)

    def resize(self, backbone: str, room: int) -> None:
        """Grow the buffers of a backbone, and of the zips whose source it is, to `room` timesteps."""
        have = self.valid[backbone].shape[1]
        grown = self.valid[backbone].new_zeros(len(self.multimodal), room)
        grown[:, :have] = self.valid[backbone]
        self.valid[backbone] = grown
        for kept, key, heads, size in self.buffers(backbone):
            weight = self.model.tower(backbone).embedding.weight
            new = KeyValue(*(weight.new_empty(len(self.multimodal), heads, room, size) for _ in range(2)))
            for index, buffer in enumerate(new):
                buffer[:, :, have:] = 0
                if have:
                    buffer[:, :, :have] = kept[key][index]
            kept[key] = new

    def buffers(self, backbone: str) -> Iterator[tuple[dict, tuple, int, int]]:
        """(dictionary, key, heads, head size) of every buffer that a token of this backbone is written to."""
        tower = self.model.cfg.towers[backbone]
        for index in range(tower.layers):
            yield self.layer_kv, (backbone, index), tower.kv_heads, tower.size
        for stage in range(self.model.stages):
            for query, source in self.model.directions_used:
                if source == backbone:
                    block = self.model.zip(stage, query, source)
                    yield self.zip_kv, (stage, (query, source)), block.heads, block.size


@cache
def compiled() -> Callable[..., Tensor]:
    """`KVCache._run`, compiled to one graph per shape: tower, batch size and block."""
    torch._dynamo.config.recompile_limit = max(MAX_GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = max(
        MAX_GRAPHS, torch._dynamo.config.accumulated_recompile_limit
    )
    return torch.compile(KVCache._run, fullgraph=True, dynamic=False)


def _round_up(timesteps: int, multiple: int) -> int:
    return -(-timesteps // multiple) * multiple
