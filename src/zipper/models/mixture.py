"""Mixture of transformers (arXiv 2411.04996): every tower keeps its weights, and all of them attend to the
keys of the whole document.
"""

from typing import cast

import torch
from torch import Tensor, nn

from zipper.config import ModelConfig
from zipper.data.batches import Batch
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import KeyValue, Layer, Tower


class MixtureModel(MultimodalModel):
    """Self-attention over all towers' keys in each layer, in place of cross-attention. It adds no weights."""

    def __init__(self, cfg: ModelConfig) -> None:
        """cfg: resolved; all towers have as many layers, heads and numbers of a head."""
        super().__init__(cfg)
        self.towers = nn.ModuleDict({name: Tower(cfg.towers[name]) for name in self.names})
        self.next_modality_heads = self.make_next_modality_heads()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See MultimodalModel."""
        streams = {name: batch.streams[name] for name in self.names}
        x = {name: self.tower(name).embed(stream.tokens) for name, stream in streams.items()}
        rotations = {name: self.tower(name).rotation(stream.order) for name, stream in streams.items()}
        order = torch.cat([stream.order for stream in streams.values()], 1)
        valid = torch.cat([stream.valid for stream in streams.values()], 1)
        masks = {  # [B, T, all tokens]
            name: (order[:, None] <= stream.order[..., None]) & valid[:, None]
            for name, stream in streams.items()
        }
        for index in range(self.cfg.towers[self.names[0]].layers):
            layers = {name: cast(Layer, self.tower(name).layers[index]) for name in self.names}
            found = {name: layer.project(x[name], rotations[name]) for name, layer in layers.items()}
            everyone = KeyValue(
                *(torch.cat(parts, 2) for parts in zip(*(kv for _, kv in found.values()), strict=True))
            )
            x = {
                name: layer.attend(x[name], found[name][0], everyone, masks[name])
                for name, layer in layers.items()
            }
        return {name: self.tower(name).finish(x[name]) for name in self.names}
