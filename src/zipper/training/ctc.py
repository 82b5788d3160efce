"""CTC of an answer on the states of its prompt, beside next-token prediction (hybrid CTC/attention,
arXiv 1609.06773). It finds the alignment that attention learns late or, on a few hours of speech, not at all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.config import modalities_of
from zipper.data.batches import Batch
from zipper.models.multimodal import MultimodalModel, Pair


class CtcHeads(nn.Module):
    """A linear head for each pair (prompt, answer) of tasks of two modalities whose answer has one codebook.
    Exports do not have them."""

    def __init__(self, model: MultimodalModel, tasks: list[str]) -> None:
        super().__init__()
        chains = [modalities_of(task) for task in tasks]
        self.pairs: list[Pair] = [
            (chain[0], chain[1])
            for chain in chains
            if len(chain) == 2 and model.tower(chain[1]).cfg.codebooks == 1
        ]
        self.specials = {answer: model.tower(answer).cfg.specials for _, answer in self.pairs}
        self.heads = nn.ModuleDict(
            {
                f"{answer}_from_{prompt}": nn.Linear(
                    model.tower(prompt).cfg.width, model.tower(answer).cfg.vocabulary + 1
                )
                for prompt, answer in self.pairs
            }
        )  # the last output is CTC's blank

    def forward(self, states: dict[str, Tensor], batch: Batch) -> Tensor:
        """Share of these documents in the loss per token of the step's answers, summed over pairs: [].
        states: of every modality, [B, T, D]."""
        loss = next(iter(states.values())).new_zeros(())
        for prompt, answer in self.pairs:
            source, target = batch.streams[prompt], batch.streams[answer]
            tokens = target.tokens[..., 0]
            written = target.valid & ~torch.isin(tokens, tokens.new_tensor(self.specials[answer]))
            # Documents that begin with the prompt: speech that follows its text has seen the text.
            first = source.valid[:, 0] & (source.order[:, 0] == 0)
            lengths = written.sum(1) * first
            head = self.heads[f"{answer}_from_{prompt}"]
            scores = head(states[prompt]).float().log_softmax(-1)  # [B, T, V + 1]
            each = F.ctc_loss(
                scores.transpose(0, 1),
                tokens[:, 1:],  # after BOS
                source.valid.sum(1).clamp(min=1),
                lengths,
                blank=scores.shape[-1] - 1,
                reduction="none",
                zero_infinity=True,  # an answer that is longer than its prompt
            )
            loss = loss + torch.where(lengths > 0, each, 0.0).sum() / max(batch.total[answer], 1.0)
        return loss
