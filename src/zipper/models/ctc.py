"""CTC of an answer's letters on the states of its prompt, beside next-token prediction (hybrid CTC/attention,
arXiv 1609.06773). It finds the alignment that attention learns late or, on a few hours of speech, not at all;
attention can be guided by it, and beam search can use its scores, too (`generation.ctc`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import forced_align

from zipper.config import modalities_of
from zipper.data.batches import Batch
from zipper.errors import ConfigError
from zipper.modalities.base import Modality

MARGIN = 2  # timesteps on either side of a token's letters that its attention may go to
LEAST = 1e-4  # added to attention weights before the logarithm
SAVED = re.compile(r"ctc\.heads\.([\w-]+)_from_([\w-]+)\.table")  # in the state dict of a model


class CtcHead(nn.Module):
    """Linear head of one prompt over the letters of its answer, and CTC's blank, which comes first.

    table uint8 or int64 [V, L]: letters of each token of the answer's tower, from 1 on (`letter_table`);
    0: none.
    """

    def __init__(self, width: int, table: Tensor, prompt: str, answer: str) -> None:
        """width: of the prompt's tower."""
        super().__init__()
        self.prompt, self.answer = prompt, answer
        self.linear = nn.Linear(width, 1 + int(table.max()))
        for parameter in self.linear.parameters():  # the same in every process: it is made after seeding
            nn.init.zeros_(parameter)
        # int16 would be small enough for any alphabet, but processes cannot exchange it.
        self.register_buffer("table", table.to(torch.uint8 if int(table.max()) < 256 else torch.int64))

    def forward(self, states: Tensor) -> Tensor:
        """Log probabilities [B, T, letters + 1] from the states [B, T, D] of the prompt's tower."""
        scores = self.linear(states)
        return (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)

    def loss(self, states: dict[str, Tensor], batch: Batch) -> Tensor:
        """Share of these documents in the loss per token of the step's answers: []. states: of every
        modality, [B, T, D]."""
        letters = self._letters(batch)
        lengths = (letters > 0).sum((1, 2))
        each = F.ctc_loss(
            self(states[self.prompt]).transpose(0, 1),
            letters[letters > 0],
            batch.streams[self.prompt].valid.sum(1).clamp(min=1),
            lengths,
            reduction="none",
            zero_infinity=True,  # an answer that is longer than its prompt
        )
        return torch.where(lengths > 0, each, 0.0).sum() / max(batch.total[self.answer], 1.0)

    def guide(self, states: dict[str, Tensor], batch: Batch, attention: Sequence[Tensor]) -> Tensor:
        """-log of the attention that each token of an answer pays to the frames in which it is said, mean
        over zips, in the unit of `loss`: [].

        The frames are those of its letters in the best alignment, and MARGIN on either side; a token counts
        as much as CTC is sure of its letters there. attention: [R, Tq, Tk] per zip, of the answer to the
        prompt (`recorded_attention`).
        """
        rows, frames, tokens = (
            batch.attends_to[self.answer, self.prompt],
            batch.streams[self.prompt].valid.sum(1).tolist(),
            self._letters(batch).cpu(),
        )
        scores, shape = self(states[self.prompt]).detach().float().cpu(), attention[0].shape
        said, sure = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape[:2])
        for at, row in enumerate(rows.tolist()):
            place, _ = (tokens[row] > 0).nonzero(as_tuple=True)  # of each letter's token
            written = tokens[row][tokens[row] > 0]
            needed = len(written) + int((written[1:] == written[:-1]).sum())
            if not 0 < needed <= frames[row]:
                continue
            path, score = forced_align(scores[row : row + 1, : frames[row]], written[None].int())
            begins = (path[0] > 0) & F.pad(path[0, 1:] != path[0, :-1], (1, 0), value=True)
            spoken = path[0] > 0
            of = place[begins.cumsum(0)[spoken] - 1]  # token of each frame that is no blank
            when = spoken.nonzero()[:, 0]
            for token in place.unique().tolist():
                own = when[of == token]
                # The query before a token predicts it.
                said[at, token - 1, max(0, int(own[0]) - MARGIN) : int(own[-1]) + MARGIN + 1] = True
                sure[at, token - 1] = score[0, own].exp().mean()
        said, sure = said.to(attention[0].device), sure.to(attention[0].device)
        missed = [-(sure * ((weights * said).sum(-1) + LEAST).log()).sum() for weights in attention]
        return torch.stack(missed).mean() / max(batch.total[self.answer], 1.0)

    def _letters(self, batch: Batch) -> Tensor:
        """Letters of each token of the answers, 0 for none: int64 [B, S, L]. Only documents that begin with
        the prompt have any, since speech that follows its text has seen the text, and that end with the
        answer, whose tokens alone are counted by `Batch.total`."""
        source, target = batch.streams[self.prompt], batch.streams[self.answer]
        first = source.valid[:, 0] & (source.order[:, 0] == 0)
        ends = [torch.where(one.valid, one.order, -1).amax(1) for one in batch.streams.values()]
        last = torch.where(target.valid, target.order, -1).amax(1) == torch.stack(ends).amax(0)
        written = target.valid & (first & last)[:, None]
        return self.get_buffer("table")[target.tokens[..., 0]].long() * written[..., None]


class CtcHeads(nn.Module):
    """A `CtcHead` for each task of two modalities whose answer has letters."""

    def __init__(self, heads: Mapping[str, CtcHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "CtcHeads | None":
        """Heads of the shape that a model's state dict has, or None if it has none."""
        heads = dict[str, CtcHead]()
        for name, table in state.items():
            if (found := SAVED.fullmatch(name)) is not None:
                answer, prompt = found.groups()
                width = state[name.replace("table", "linear.weight")].shape[1]
                heads[f"{answer}_from_{prompt}"] = CtcHead(width, table, prompt, answer)
        return cls(heads) if heads else None

    def get(self, answer: str, prompt: str) -> CtcHead | None:
        """The head of a pair, if there is one."""
        return next((one for one in self.own() if (one.answer, one.prompt) == (answer, prompt)), None)

    @classmethod
    def of(
        cls, widths: Mapping[str, int], tasks: Iterable[str], modalities: Mapping[str, Modality]
    ) -> "CtcHeads":
        """widths: of the towers, by modality. Raises ConfigError if there is no such task."""
        heads: dict[str, CtcHead] = {}
        for chain in map(modalities_of, tasks):
            answer = modalities[chain[-1]]
            specials = {*answer.layout.specials}
            labels = answer.labels(range(answer.layout.vocabulary)) if len(chain) == 2 else None
            if labels:
                spelling = ["" if token in specials else label for token, label in enumerate(labels)]
                head = CtcHead(widths[chain[0]], letter_table(spelling), *chain)
                heads[f"{chain[1]}_from_{chain[0]}"] = head
        if not heads:
            raise ConfigError(
                f"train.ctc with train.tasks={[*tasks]}: no task of two modalities has an answer with "
                "letters, such as speech>text. Leave train.ctc out."
            )
        return cls(heads)

    def guide(self, states: dict[str, Tensor], batch: Batch, attention: Sequence[Sequence[Tensor]]) -> Tensor:
        """Sum of the heads' `CtcHead.guide`: []. attention: of each head's pair (`recorded_attention`)."""
        heads = zip(self.own(), attention, strict=True)
        return torch.stack([head.guide(states, batch, own) for head, own in heads]).sum()

    def forward(self, states: dict[str, Tensor], batch: Batch) -> Tensor:
        """Sum of the heads' losses: []. states: of every modality, [B, T, D]."""
        return torch.stack([head.loss(states, batch) for head in self.own()]).sum()

    def own(self) -> list[CtcHead]:
        return [head for head in self.heads.values() if isinstance(head, CtcHead)]


def letter_table(spelling: Sequence[str]) -> Tensor:
    """Letters of each token, numbered from 1 on: int64 [V, L], 0 for none. spelling: of each token; empty for
    special ones."""
    letters = sorted({*"".join(spelling)})
    table = torch.zeros(len(spelling), max(map(len, spelling)), dtype=torch.int64)
    for token, word in enumerate(spelling):
        table[token, : len(word)] = torch.tensor([1 + letters.index(letter) for letter in word])
    return table
