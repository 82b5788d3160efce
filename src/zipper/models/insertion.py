"""Token insertion: states of pre-trained towers are projected into the input sequence of another one, as most
speech language models do (SLAM-ASR, arXiv 2402.08846), and, the other way round, as a talker is fed by a
thinker (Qwen2.5-Omni, arXiv 2503.20215).
"""

from torch import Tensor, nn

from zipper.config import ModelConfig
from zipper.data.batches import Batch
from zipper.models.multimodal import MultimodalModel, in_document_order, of_modality
from zipper.models.tower import Tower
from zipper.models.zip_block import mlp

DEPTH = 2  # linear layers of a projection


class InsertionModel(MultimodalModel):
    """The first modality's tower answers. Its sequence is the document, where a token of another modality is
    the projected state that its own tower has of it; that tower sees its own modality alone."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.answer = self.names[0]
        self.towers = nn.ModuleDict({name: Tower(cfg.towers[name]) for name in self.names})
        width = cfg.towers[self.answer].width
        self.projections = nn.ModuleDict(
            {name: mlp(cfg.towers[name].width, width, DEPTH) for name in self.names[1:]}
        )
        # A plain dict, because the towers own the weights.
        answer = self.tower(self.answer)
        self.readers = {n: InsertedTower(self.tower(n), p, answer) for n, p in self.projections.items()}
        self.next_modality_heads = self.make_next_modality_heads()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See MultimodalModel."""
        states = {name: self.tower(name)(batch.streams[name].tokens) for name in self.projections}
        own = self.tower(self.answer)
        parts = {name: projection(states[name]) for name, projection in self.projections.items()}
        x = in_document_order({self.answer: own.embed(batch.streams[self.answer].tokens), **parts}, batch)
        return {self.answer: of_modality(own.run(x), batch.streams[self.answer]), **states}

    def reader(self, name: str) -> Tower:
        return self.readers.get(name) or self.tower(name)

    def outputs(self, name: str, tokens: Tensor, x: Tensor) -> Tensor:
        return super().outputs(name, tokens, x) if name == self.answer else self.tower(name)(tokens)


class InsertedTower(Tower):
    """The answering tower's layers, which read the projected states of another tower."""

    def __init__(self, tower: Tower, projection: nn.Module, answer: Tower) -> None:
        nn.Module.__init__(self)
        self.cfg, self.layers, self.embedding = answer.cfg, answer.layers, answer.embedding
        self.tower, self.projection = tower, projection

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T, Q], a whole segment -> [B, T, D]"""
        return self.projection(self.tower(tokens))
