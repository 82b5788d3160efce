"""The single step of a tower and its zips in C (native_step.c), for a CPU and float32.

A small tower's step is a thousand operators, whose calls take longer than their work. The source is compiled
for this machine when a process first uses it, in about a second.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_long, c_void_p
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.errors import ConfigError
from zipper.generation.single_step import CrossAttentionBias, QueryPosition, SingleStep
from zipper.models.lora import merged
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import KeyValue, Layer, LayerCache
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import InputProjection, ZipperModel

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")
# As -ffast-math, except that a NaN stays a NaN.
FLAGS = (
    "-O3", "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native",
    "-shared", "-fPIC",
    "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-freciprocal-math", "-fno-signed-zeros",
)  # fmt: skip
ROWS = 8  # rows that are worth a thread


def _struct(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# Structs of native_step.c, which says what their fields are.
_Product = _struct("_Product", weight=c_void_p, bias=c_void_p, inputs=c_long, outputs=c_long)
_Norm = _struct("_Norm", weight=c_void_p, eps=c_float)
_KeyValue = _struct(
    "_KeyValue",
    key=c_void_p, value=c_void_p, bias=c_void_p, capacity=c_long, timesteps=c_long, bias_stride=c_long,
)  # fmt: skip
_Block = _struct(
    "_Block",
    is_zip=c_long, heads=c_long, kv_heads=c_long, size=c_long,
    norm=_Norm, feed_forward_norm=_Norm, query_norm=_Norm, key_norm=_Norm,
    into=_Product, out=_Product, widen=_Product, narrow=_Product,
    attention_gate=c_float, feed_forward_gate=c_float,
    kv=_KeyValue, has_source=c_void_p, first_of_stage=c_long,
)  # fmt: skip
_Step = _struct(
    "_Step",
    width=c_long, blocks=c_long, at=c_long, block=c_void_p, cos=c_void_p, sin=c_void_p,
    zip_cos=c_void_p, zip_sin=c_void_p, finish=_Norm,
)  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """native_step.c, compiled for this machine. Raises ConfigError without a compiler of C."""
    words = os.environ.get("CC", "").split() or [next(filter(shutil.which, COMPILERS), "")]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "native_step.so"
        command = [*words, *FLAGS, str(SOURCE), "-o", str(out), "-lm"]
        try:
            if subprocess.run([*command, "-fopenmp"], capture_output=True).returncode:  # in one thread then
                subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"decode.NAME.compile=true needs a compiler of C on a CPU, and {words[0] or COMPILERS[0]!r} "
                f"does not start ({error.strerror}). Install gcc or clang, name another in the variable CC, "
                "or give false."
            ) from None
        except subprocess.CalledProcessError as error:
            raise ConfigError(
                f"decode.NAME.compile=true: {words[0]} cannot compile the decoding step: "
                f"{error.stderr.strip()[:500] or error}. Name another one in the variable CC, or give false."
            ) from None
        try:
            return ctypes.CDLL(str(out))
        except OSError as error:
            raise ConfigError(
                f"decode.NAME.compile=true: the compiled decoding step cannot be loaded from {folder} "
                f"({error}). Name a folder that may hold programs in the variable TMPDIR, or give false."
            ) from None


class NativeStep(SingleStep):
    """`SingleStep` whose layers, zips and final norm are one call (`run`), and logits another."""

    def __init__(self, model: MultimodalModel, name: str) -> None:
        """Raises ConfigError without a compiler of C."""
        super().__init__(model, name)
        self.library, tower = library(), model.tower(name)
        self.tile = self.library.tile()  # columns of a packed weight that lie together
        self.kept: list[Tensor] = []  # weights that the structs point to
        self.layer_blocks: list[tuple[int, ctypes.Structure]] = []  # (layer, its block)
        self.zip_blocks: list[tuple[int, str, ctypes.Structure]] = []  # (stage, source, its block)
        sources = [source for query, source in model.directions_used if query == name]
        count = tower.cfg.layers + model.stages * len(sources)
        self.blocks = (_Block * count)()
        free = iter(self.blocks)
        for stage in range(model.stages + 1):
            for index in model.layers(name, stage):
                self.layer_blocks.append((index, self._layer(next(free), tower.layers[index])))
            for source in sources if stage < model.stages else ():
                block = self._zip(next(free), model.zip(stage, name, source))
                block.first_of_stage = source == sources[0]
                self.zip_blocks.append((stage, source, block))
        self.step = _Step(tower.cfg.width, count, 0, ctypes.addressof(self.blocks))
        self._norm(self.step.finish, tower.norm)
        self.to_logits = _Product()
        self._weight(self.to_logits, tower.weight)
        self.projection: InputProjection | None = None
        if isinstance(model, ZipperModel) and name in model.projections:
            self.projection = cast(InputProjection, model.projections[name])
        self.linears: list[ctypes.Structure] = []  # of the input projection, with ReLU between them
        for linear in self.projection.mlp[::2].children() if self.projection else ():
            self.linears.append(_Product())
            self._product(self.linears[-1], linear)

    def embed(self, tokens: Tensor, multimodal: Tensor) -> Tensor:
        """tokens int64 [B, Q] -> [B, D], with the input projection."""
        x = y = F.embedding_bag(tokens + self.offset, self.table, mode="sum")
        if self.projection is None:
            return x
        for index, linear in enumerate(self.linears):
            y = self._multiply(linear, y.relu_() if index else y)
        y = self.projection.combine(x, y)
        return y if multimodal.all() else torch.where(multimodal[:, None], y, x)

    def logits(self, states: Tensor) -> Tensor:
        """states [B, D] -> [B, Q, V]"""
        return self._multiply(self.to_logits, states.contiguous()).unflatten(1, (len(self.offset), -1))

    def _multiply(self, product: ctypes.Structure, x: Tensor) -> Tensor:
        """x [B, inputs], contiguous -> [B, outputs]"""
        y, threads = x.new_empty(len(x), product.outputs), c_long(torch.get_num_threads())
        into, out_of = c_void_p(y.data_ptr()), c_void_p(x.data_ptr())
        self.library.multiply(ctypes.byref(product), out_of, into, c_long(len(x)), threads)
        return y

    def run(
        self,
        x: Tensor,
        at: int,
        rotation: tuple[Tensor, Tensor],
        bias: Tensor,
        own: Sequence[LayerCache],
        query_position: QueryPosition,
        sources: Mapping[str, tuple[CrossAttentionBias, Sequence[KeyValue]]],
    ) -> Tensor:
        """Turn x [B, D] after the input projection into states [B, D], in place. Keys and values go into
        timestep `at` of `own`.

        rotation: cosines and sines [B, 1, K] of the layers. bias: of the layers, [B, 1, 1, timesteps].
        own: by layer. query_position: of the zips, as in `SingleStep`. sources: by tower with cached tokens,
        its bias, and its keys and values by stage.
        """
        step = self.step
        step.at, (step.cos, step.sin) = at, (part.data_ptr() for part in rotation)
        step.zip_cos, step.zip_sin = [part.data_ptr() for part in query_position or ()] or (None, None)
        for index, block in self.layer_blocks:
            _set(block.kv, own[index].buffers, bias)
        for stage, source, block in self.zip_blocks:
            if source in sources:
                (source_bias, has_source), kv = sources[source]
                _set(block.kv, kv[stage], source_bias)
                block.has_source = None if has_source is None else has_source.data_ptr()
            else:
                block.kv.timesteps = 0
        threads = max(1, min(torch.get_num_threads(), len(x) // ROWS))
        if self.library.run(ctypes.byref(step), c_void_p(x.data_ptr()), c_long(len(x)), c_long(threads)):
            raise MemoryError(f"No memory for a timestep of {len(x)} rows.")
        return x

    def _layer(self, block: ctypes.Structure, layer: nn.Module) -> ctypes.Structure:
        assert isinstance(layer, Layer)
        attention, feed_forward = layer.attention, layer.feed_forward
        block.is_zip, block.attention_gate, block.feed_forward_gate = 0, 1.0, 1.0
        block.heads, block.kv_heads, block.size = attention.heads, attention.kv_heads, attention.size
        self._norm(block.norm, layer.attention_norm)
        self._norm(block.feed_forward_norm, layer.feed_forward_norm)
        if attention.query_norm is not None and attention.key_norm is not None:
            self._norm(block.query_norm, attention.query_norm)
            self._norm(block.key_norm, attention.key_norm)
        self._product(block.into, attention.to_qkv)
        self._product(block.out, attention.to_out)
        self._product(block.widen, feed_forward.gate_up)
        self._product(block.narrow, feed_forward.down)
        return block

    def _zip(self, block: ctypes.Structure, zipped: ZipBlock) -> ctypes.Structure:
        widen, _, narrow = zipped.feed_forward
        block.is_zip, block.heads, block.kv_heads, block.size = 1, zipped.heads, zipped.heads, zipped.size
        block.attention_gate = zipped.attention_gate.tanh().item()
        block.feed_forward_gate = zipped.feed_forward_gate.tanh().item()
        self._norm(block.norm, zipped.query_norm)
        self._norm(block.feed_forward_norm, zipped.feed_forward_norm)
        self._product(block.into, zipped.to_q)
        self._product(block.out, zipped.to_out)
        self._product(block.widen, widen)
        self._product(block.narrow, narrow)
        return block

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def _norm(self, into: ctypes.Structure, norm: nn.RMSNorm) -> None:
        into.weight = self._keep(norm.weight)
        into.eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps

    def _product(self, into: ctypes.Structure, linear: nn.Module) -> None:
        assert isinstance(linear, nn.Linear)
        self._weight(into, merged(linear))
        into.bias = None if linear.bias is None else self._keep(linear.bias)

    def _weight(self, into: ctypes.Structure, weight: Tensor) -> None:
        """weight [outputs, inputs]"""
        into.outputs, into.inputs = weight.shape
        padded = F.pad(weight, (0, 0, 0, -len(weight) % self.tile))
        into.weight = self._keep(padded.unflatten(0, (-1, self.tile)).transpose(1, 2))


def _set(into: ctypes.Structure, kv: KeyValue, bias: Tensor) -> None:
    """Point to keys and values, of which a bias [B, 1, 1, timesteps] is known."""
    into.key, into.value, into.bias = kv.key.data_ptr(), kv.value.data_ptr(), bias.data_ptr()
    into.capacity = kv.key.stride(1) // kv.key.shape[3]
    into.timesteps, into.bias_stride = bias.shape[-1], bias.stride(0)
