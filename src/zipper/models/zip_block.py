"""Zip of one direction: gated cross-attention from a query tower to a source tower.

Paper 3.1: h = ReLU(g(m_source)), then Flamingo's gated cross-attention block (arXiv 2204.14198): x + tanh(a)
attention(x, h), then + tanh(b) FFW.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.config import ZipConfig
from zipper.models.tower import KeyValue, rotate, rotation

SECONDS_BASE = 100.0  # ratio of the longest to the shortest rotary wavelength of a zip
SECONDS_PER_RADIAN = 0.05  # of the fastest rotation


def cross_attention_mask(order_q: Tensor, order_k: Tensor, valid_k: Tensor) -> Tensor:
    """Mask of the source tokens that precede each query token in the document order (paper 3.1).

    order_q [B, Tq], order_k [B, Tk]: index of each token in the interleaved sequence. valid_k bool [B, Tk]:
    False on padding. Returns bool [B, Tq, Tk], True = attend.
    """
    return (order_k[:, None, :] < order_q[:, :, None]) & valid_k[:, None, :]


class TimePositions:
    """Times [B, T] in seconds, with their rotations cached for all stages."""

    def __init__(self, time: Tensor) -> None:
        self.time = time
        self._rotations: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def rotation(self, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines for heads of size `size`."""
        if torch.compiler.is_compiling():  # fused; guards on the cache would compile again
            return rotation(self.time / SECONDS_PER_RADIAN, size, SECONDS_BASE, dtype)
        if (size, dtype) not in self._rotations:
            self._rotations[size, dtype] = rotation(self.time / SECONDS_PER_RADIAN, size, SECONDS_BASE, dtype)
        return self._rotations[size, dtype]


class ZipBlock(nn.Module):
    """Gated cross-attention block. The caller sums the outputs of all source towers."""

    def __init__(self, cfg: ZipConfig, query: int, source: int) -> None:
        """query, source: widths D and C of the towers."""
        super().__init__()
        self.cfg, self.heads, self.size = cfg, cfg.heads, query // cfg.heads
        self.source_norm = nn.RMSNorm(source)
        self.projection = mlp(source, query, cfg.projection_depth)  # g
        self.query_norm = nn.RMSNorm(query)
        diagonal = cfg.diagonal if cfg.position == "rotary" else 0.0
        # Equal constant biases of queries and keys, rotated by time, favour source tokens of the same time
        # (the sum of cos(frequency x difference) is largest at 0). Without this initial diagonal, zips learn
        # the alignment late.
        self.to_q = nn.Linear(query, query)
        self.to_k = nn.Linear(query, query)
        for linear in (self.to_q, self.to_k):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.constant_(self.to_q.bias, diagonal)
        nn.init.constant_(self.to_k.bias, diagonal)
        self.to_v = nn.Linear(query, query, bias=False)
        self.to_out = nn.Linear(query, query, bias=False)
        for linear in (self.to_v, self.to_out):
            nn.init.normal_(linear.weight, std=query**-0.5)
        self.feed_forward_norm = nn.RMSNorm(query)
        self.feed_forward = nn.Sequential(
            nn.Linear(query, cfg.feed_forward * query, bias=False),
            nn.GELU(),
            nn.Linear(cfg.feed_forward * query, query, bias=False),
        )
        self.attention_gate = gate(cfg.gate_init)  # a
        self.feed_forward_gate = gate(cfg.gate_init)  # b
        self.scale = 1.0  # of the output, by `rescale_zips`

    def forward(self, x: Tensor, times: TimePositions, source: KeyValue, mask: Tensor) -> Tensor:
        """Output to be added to x: x [B, Tq, D], times [B, Tq], mask bool [B, Tq, Tk] -> [B, Tq, D].

        It is 0 for a token with nothing to attend to, so such a token skips the whole block, feed-forward
        included.
        """
        attends_any = mask.any(dim=-1, keepdim=True)  # [B, Tq, 1]
        # A row without source tokens attends to all of them, and its output is dropped: some GPU kernels give
        # it NaN gradients.
        attended = self.attend(x, times, source, mask | ~attends_any)
        y = x + self.attention_gate.tanh() * attended
        y = y + self.feed_forward_gate.tanh() * self.feed_forward(self.feed_forward_norm(y))
        return torch.where(attends_any, y - x, 0.0)

    def attend(self, x: Tensor, times: TimePositions, source: KeyValue, mask: Tensor) -> Tensor:
        """Cross-attention before its gate: [B, Tq, D]. Every row of the mask has a True."""
        q = self.query(x, times)
        y = F.scaled_dot_product_attention(q, source.key, source.value, attn_mask=mask[:, None])
        return self.to_out(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, times: TimePositions, source: KeyValue, mask: Tensor) -> Tensor:
        """Attention weights of `attend`: [B, H, Tq, Tk]; rows with nothing to attend to are 0."""
        scores = self.query(x, times) @ source.key.transpose(2, 3) / math.sqrt(self.size)
        return torch.nan_to_num(scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1))

    def query(self, x: Tensor, times: TimePositions) -> Tensor:
        """Queries of x [B, Tq, D]: [B, H, Tq, K]"""
        return self._add_position(self._split(self.to_q(self.query_norm(x))), times)

    def project_source(self, source: Tensor, times: TimePositions) -> KeyValue:
        """Keys and values [B, H, Tk, K] of the source tower's states [B, Tk, C] at times [B, Tk]."""
        h = F.relu(self.projected(source))
        return KeyValue(self._add_position(self._split(self.to_k(h)), times), self._split(self.to_v(h)))

    def projected(self, source: Tensor) -> Tensor:
        """g of the source tower's states, before its ReLU: [B, Tk, C] -> [B, Tk, D]."""
        return self.projection(self.source_norm(source))

    def _add_position(self, x: Tensor, times: TimePositions) -> Tensor:
        return rotate(x, times.rotation(self.size, x.dtype)) if self.cfg.position == "rotary" else x

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, H, T, K]


def gate(value: float) -> nn.Parameter:
    """Gate parameter [1]. FSDP2 does not shard scalars."""
    return nn.Parameter(torch.full((1,), value))


def is_gate(name: str) -> bool:
    """Whether a parameter name is that of a gate."""
    return name.endswith("gate")


def mlp(in_features: int, out_features: int, depth: int) -> nn.Sequential:
    """Linear layers with ReLU between them (paper 4.1: 3 layers)."""
    layers: list[nn.Module] = []
    for index in range(depth):
        linear = nn.Linear(out_features if index else in_features, out_features)
        # PyTorch's default leaves 7 % of the signal after three layers, less than the biases.
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [nn.ReLU(), linear] if index else [linear]
    return nn.Sequential(*layers)
