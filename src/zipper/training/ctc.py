"""CTC of an answer's letters on the states of its prompt, beside next-token prediction (hybrid CTC/attention,
arXiv 1609.06773). It finds the alignment that attention learns late or, on a few hours of speech, not at all.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.config import modalities_of
from zipper.data.batches import Batch
from zipper.errors import ConfigError
from zipper.modalities.base import Modality
from zipper.models.multimodal import MultimodalModel


class CtcHead(nn.Module):
    """Linear head of one prompt over the letters of its answer, and CTC's blank, which comes first.

    spelling: letters of each token of the answer's tower; those of special tokens are empty.
    """

    def __init__(self, width: int, spelling: Sequence[str], prompt: str, answer: str) -> None:
        super().__init__()
        self.prompt, self.answer = prompt, answer
        letters = sorted({*"".join(spelling)})
        self.linear = nn.Linear(width, 1 + len(letters))
        for parameter in self.linear.parameters():  # the same in every process: it is made after seeding
            nn.init.zeros_(parameter)
        table = torch.zeros(len(spelling), max(map(len, spelling)), dtype=torch.int64)
        for token, word in enumerate(spelling):
            table[token, : len(word)] = torch.tensor([1 + letters.index(letter) for letter in word])
        self.register_buffer("table", table, persistent=False)  # int64 [V, L]; 0: none

    def forward(self, states: dict[str, Tensor], batch: Batch) -> Tensor:
        """Share of these documents in the loss per token of the step's answers: []. states: of every
        modality, [B, T, D]."""
        source, target = batch.streams[self.prompt], batch.streams[self.answer]
        # Documents that begin with the prompt: speech that follows its text has seen the text.
        first = source.valid[:, 0] & (source.order[:, 0] == 0)
        letters = self.get_buffer("table")[target.tokens[..., 0]]  # [B, S, L]
        written = (letters > 0) & (target.valid & first[:, None])[..., None]
        lengths = written.sum((1, 2))
        scores = self.linear(states[self.prompt])  # [B, T, letters + 1]
        if scores.dtype != torch.float64:
            scores = scores.float()
        each = F.ctc_loss(
            scores.log_softmax(-1).transpose(0, 1),
            letters[written],
            source.valid.sum(1).clamp(min=1),
            lengths,
            reduction="none",
            zero_infinity=True,  # an answer that is longer than its prompt
        )
        return torch.where(lengths > 0, each, 0.0).sum() / max(batch.total[self.answer], 1.0)


class CtcHeads(nn.Module):
    """A `CtcHead` for each task of two modalities whose answer has letters. Exports do not have them."""

    def __init__(self, heads: Mapping[str, CtcHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    @classmethod
    def of(
        cls, model: MultimodalModel, tasks: Iterable[str], modalities: Mapping[str, Modality]
    ) -> "CtcHeads":
        """Raises ConfigError if there is no such task."""
        heads: dict[str, CtcHead] = {}
        for chain in map(modalities_of, tasks):
            answer = modalities[chain[-1]]
            specials = {*answer.layout.specials}
            labels = answer.labels(range(answer.layout.vocabulary)) if len(chain) == 2 else None
            if labels:
                spelling = ["" if token in specials else label for token, label in enumerate(labels)]
                head = CtcHead(model.tower(chain[0]).cfg.width, spelling, *chain)
                heads[f"{chain[1]}_from_{chain[0]}"] = head
        if not heads:
            raise ConfigError(
                f"train.ctc with train.tasks={[*tasks]}: no task of two modalities has an answer with "
                "letters, such as speech>text. Leave train.ctc out."
            )
        return cls(heads).to(next(model.parameters()).dtype)  # Lightning casts after loading a checkpoint

    def forward(self, states: dict[str, Tensor], batch: Batch) -> Tensor:
        """Sum of the heads' losses: []. states: of every modality, [B, T, D]."""
        return torch.stack([head(states, batch) for head in self.heads.values()]).sum()
