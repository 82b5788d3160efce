"""Decoder-only language model of one modality in the Llama architecture, run a few layers at a time.

Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU, head tied to the embedding. A timestep
holds Q tokens (the codebooks of a speech frame; 1 for text). Their embeddings are summed, and Q tied heads
predict the next timestep. Options of other checkpoints of the family (biases, query and key norms, untied
head, rope scaling) follow the config; `models.hf` reads such checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from zipper.config import TowerConfig
from zipper.models.lora import add_lora

# cuDNN plans attention anew for each shape, and ours differ in every step: 8 times slower on an H100.
torch.backends.cuda.enable_cudnn_sdp(False)


class KeyValue(NamedTuple):
    """Keys and values [B, H, T, K] of one layer or zip."""

    key: Tensor
    value: Tensor


class LayerCache(NamedTuple):
    """Key-value cache of one layer or zip for the current tokens. Timesteps that are not yet written are
    masked by the caller."""

    buffers: KeyValue  # [B, H, capacity, K]
    at: Tensor  # int64 [T], timesteps of these tokens
    read: int  # timesteps to read

    def store(self, new: KeyValue) -> None:
        """Write keys and values [B, H, T, K] of new tokens."""
        for buffer, values in zip(self.buffers, new, strict=True):
            buffer.index_copy_(2, self.at, values)

    def update(self, new: KeyValue) -> KeyValue:
        """Write keys and values of new tokens, and return all cached ones: [B, H, read, K]."""
        self.store(new)
        return KeyValue(*(buffer[:, :, : self.read] for buffer in self.buffers))


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = cfg.heads, cfg.kv_heads, cfg.size
        heads = cfg.heads + 2 * cfg.kv_heads  # queries, keys, values: one product for all of them
        self.to_qkv = nn.Linear(cfg.width, heads * self.size, bias=cfg.qkv_bias)
        self.to_out = nn.Linear(cfg.heads * self.size, cfg.width, bias=False)
        self.query_norm = nn.RMSNorm(self.size, eps=cfg.norm_eps) if cfg.qk_norm else None
        self.key_norm = nn.RMSNorm(self.size, eps=cfg.norm_eps) if cfg.qk_norm else None

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, KeyValue]:
        """Queries [B, H, T, K], and keys and values, of x [B, T, D]."""
        qkv = self.to_qkv(x).unflatten(-1, (-1, self.size)).transpose(1, 2)  # [B, H + 2 H_kv, T, K]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=1)
            qk = torch.cat([self.query_norm(q), self.key_norm(k)], dim=1)
        q, k = rotate(qk, rotation).split([self.heads, self.kv_heads], dim=1)
        return q, KeyValue(k, v)

    def attend(self, q: Tensor, kv: KeyValue, mask: Tensor | None = None) -> Tensor:
        """q [B, H, T, K], kv [B, H, S, K] -> [B, T, D]. mask bool [B, T, S]: attend; default causal."""
        y = F.scaled_dot_product_attention(
            q, *kv,
            attn_mask=None if mask is None else mask[:, None],
            is_causal=mask is None,
            enable_gqa=self.kv_heads != self.heads,
        )  # fmt: skip
        return self.to_out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]"""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(cfg.width, eps=cfg.norm_eps)
        self.attention = Attention(cfg)
        self.feed_forward_norm = nn.RMSNorm(cfg.width, eps=cfg.norm_eps)
        self.feed_forward = FeedForward(cfg.width, cfg.hidden)
        self.dropout = nn.Dropout(cfg.dropout)
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]. mask bool [B, T, cache.read], True = attend; default causal."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, x, rotation, mask, cache, use_reentrant=False)
        return self._run(x, rotation, mask, cache)

    def _run(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        q, kv = self.project(x, rotation)
        return self.attend(x, q, kv if cache is None else cache.update(kv), mask)

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, KeyValue]:
        """See Attention."""
        return self.attention.project(self.attention_norm(x), rotation)

    def attend(self, x: Tensor, q: Tensor, kv: KeyValue, mask: Tensor | None = None) -> Tensor:
        """x [B, T, D] after attention of its queries q to keys and values, and the feed-forward."""
        x = x + self.dropout(self.attention.attend(q, kv, mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Tower(nn.Module):
    """Decoder in parts: `embed`, then `run` (or `layers` and `finish`), then `logits`."""

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.codebooks * cfg.vocabulary, cfg.width)  # codebook by codebook
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.width, eps=cfg.norm_eps)
        self.head = None if cfg.tied else nn.Parameter(torch.randn(self.embedding.weight.shape) * 0.02)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            # Keep the scale of the residual stream independent of depth.
            if name.endswith(("to_out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * cfg.layers) ** 0.5)
        if cfg.lora:
            add_lora(self, cfg.lora)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unimodal forward pass: tokens int64 [B, T, Q], padded on the right -> states [B, T, D] for
        `logits`."""
        return self.run(self.embed(tokens))

    def run(self, x: Tensor) -> Tensor:
        """x [B, T, D] after all layers and `finish`; positions count from 0."""
        rotation = self.rotation(torch.arange(x.shape[1], device=x.device)[None])
        for layer in self.layers:
            x = layer(x, rotation)
        return self.finish(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T, Q] -> [B, T, D], summed over codebooks."""
        return self.embedding(tokens + self.offset).sum(dim=2)

    def rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for the layers. position int64 [B, T]: index of the token in its tower and
        document."""
        cfg, dtype = self.cfg, self.embedding.weight.dtype
        return rotation(position, cfg.size, cfg.rope_base, dtype, cfg.rope_scaling)

    def finish(self, x: Tensor) -> Tensor:
        """Final norm: x [B, T, D] -> [B, T, D]"""
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """states [..., D] after `finish` -> [..., Q, V]"""
        return F.linear(states, self.weight).unflatten(-1, (self.cfg.codebooks, self.cfg.vocabulary))

    def cross_entropy(self, states: Tensor, target: Tensor) -> Tensor:
        """states [N, D] after `finish`, target int64 [N, Q] -> nats [N, Q]; 0 where the target is -100."""
        return cross_entropy(self.logits(states), target)

    @property
    def weight(self) -> Tensor:
        """Weight of the heads [Q * V, D], codebook by codebook; equal to the embedding if tied."""
        return self.embedding.weight if self.head is None else self.head

    @property
    def offset(self) -> Tensor:
        """First embedding row of each codebook: int64 [Q]"""
        return torch.arange(self.cfg.codebooks, device=self.embedding.weight.device) * self.cfg.vocabulary


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits [..., V], target int64 [...] -> nats [...] in float32 or better; 0 where the target is -100."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-100, reduction="none")
    return nats.view_as(target)


def rotation(
    position: Tensor, size: int, base: float, dtype: torch.dtype, scaling: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines (arXiv 2104.09864): position [B, T], real -> two tensors [B, 1, T, K / 2].

    Angles are computed in float32 or float64, because bfloat16 cannot separate neighbouring positions.
    """
    frequency = frequencies(size, base, position.device, dtype, scaling)
    angle = (position[..., None].to(frequency.dtype) * frequency)[:, None]  # [B, 1, T, K / 2]
    return angle.cos(), angle.sin()


def frequencies(
    size: int, base: float, device: torch.device, dtype: torch.dtype, scaling: Sequence[float] = ()
) -> Tensor:
    """Rotary frequencies of a head in radians per position: [K / 2]

    scaling: one factor that divides all frequencies, or the four parameters of Llama 3 (arXiv 2407.21783:
    factor, low, high, tokens). There, wavelengths above tokens / low are scaled by the factor, those below
    tokens / high are unchanged, and those between are interpolated.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = base ** (-torch.arange(0, size, 2, device=device, dtype=exact) / size)
    if len(scaling) == 1:
        return frequency / scaling[0]
    if scaling:
        factor, low, high, tokens = scaling
        turns = tokens * frequency / (2 * math.pi)  # within the pre-training context
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / factor)
    return frequency


def rotate(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, H, T, K], with halves paired as in Llama. Shape and dtype are kept."""
    cos, sin = by
    turn = Rotate.apply if x.requires_grad else _rotate_halves  # autograd.Function adds overhead
    return turn(x.to(cos.dtype), cos, sin).to(x.dtype)


class Rotate(torch.autograd.Function):
    """Rotate (a, b) to (a cos - b sin, b cos + a sin); the backward pass rotates the gradient by the opposite
    angle.

    Written with in-place operators: five plain operators with their gradients take a tenth of a small tower's
    step.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_halves(gradient, cos, -sin), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., K] by cos, sin [..., K / 2]."""
    if torch.compiler.is_compiling():  # inductor fuses this, and cannot write into views
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    (a, b), out = x.chunk(2, dim=-1), torch.empty_like(x)
    left, right = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return out


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
