"""Scores of CTC for the prefixes of beam search (hybrid CTC/attention decoding, arXiv 1706.02737)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zipper.errors import ConfigError
from zipper.generation.cache import KVCache
from zipper.models.ctc import CtcHead

# Below all dev recordings of real speech (LOG.md): letters a timestep, and their mean probability.
FEW_LETTERS, UNSURE = 0.1, 0.7
CANDIDATES = 20  # continuations of a hypothesis that CTC scores: the likeliest of the tower
NEVER = -1e30  # in place of log(0), whose differences are undefined


class Prefix(NamedTuple):
    """Forward variables of N prefixes: log probability of the prefix within the first t frames, the last of
    them being its last letter, or a blank: [N, T + 1] each. last int64 [N]: last letter; 0: none."""

    letter: Tensor
    blank: Tensor
    last: Tensor

    def select(self, rows: Tensor) -> "Prefix":
        return Prefix(*(part[rows] for part in self))


class CtcScorer:
    """CTC's probabilities of what hypotheses spell, so far or in all."""

    def __init__(self, scores: Tensor, frames: Tensor, table: Tensor) -> None:
        """scores [N, T, letters + 1]: log probabilities, blank first. frames int64 [N]. table int64 [V, L]:
        letters of each token, 0 for none."""
        beyond = torch.arange(scores.shape[1], device=scores.device) >= frames[:, None]
        self.scores = scores.transpose(1, 2).masked_fill(beyond[:, None], NEVER).clamp(min=NEVER)
        self.scores[:, 0].masked_fill_(beyond, 0.0)  # what comes after the end is blank
        self.table = table

    def start(self) -> Prefix:
        """The empty prefix of each row."""
        blank = F.pad(self.scores[:, 0].cumsum(1), (1, 0))
        return Prefix(torch.full_like(blank, NEVER), blank, blank.new_zeros(len(blank), dtype=torch.int64))

    def extended(self, prefix: Prefix, rows: Tensor, tokens: Tensor) -> tuple[Prefix, Tensor]:
        """Prefixes with one token more, and the log probability [N] that an answer begins with them.

        rows int64 [N]: of `scores`. tokens int64 [N]."""
        letters = self.table[tokens]
        begins = self.whole(prefix)  # of a token without letters
        longer = Prefix(*(part.clone() for part in prefix))
        for at in range(int((letters > 0).sum(1).max())):
            here = letters[:, at].nonzero()[:, 0]
            new, begins[here] = self._one(longer.select(here), rows[here], letters[here, at])
            for part, own in zip(longer, new, strict=True):
                part[here] = own
        return longer, begins

    def whole(self, prefix: Prefix) -> Tensor:
        """Log probability [N] that the answer is the prefix."""
        return torch.logaddexp(prefix.letter[:, -1], prefix.blank[:, -1])

    def _one(self, prefix: Prefix, rows: Tensor, letter: Tensor) -> tuple[Prefix, Tensor]:
        """With one letter more. Each recurrence r[t] = (r[t - 1] + a[t]) p[t] is a cumulative sum of
        a[t] / (p[1] ... p[t - 1]), times p[1] ... p[t]."""
        said = self.scores[rows, letter]  # [N, T]
        same = (prefix.last == letter)[:, None]
        before = torch.where(same, prefix.blank, torch.logaddexp(prefix.letter, prefix.blank))[:, :-1]
        letters = _recurrence(before, said)
        blanks = _recurrence(letters[:, :-1], self.scores[rows, 0])
        return Prefix(letters, blanks, letter), (before + said).logsumexp(1)


def ctc_scorer(cache: KVCache, name: str) -> CtcScorer:
    """Scorer of answers of modality `name` to the prompts in a cache. Raises ConfigError if the model has no
    head for one of their modalities."""
    heads = _heads(cache, name)
    if lacking := [prompt for prompt in cache.states or ["this prompt"] if prompt not in heads]:
        raise ConfigError(
            f"decode.{name}.ctc: no head of CTC from {' and '.join(lacking)} to {name}. Leave it out, or "
            "train with train.ctc=0.3, which makes one."
        )
    parts = [(head, *cache.states[prompt]) for prompt, head in heads.items()]
    tables = [head.get_buffer("table").long() for head, _, _ in parts]
    if not all(torch.equal(table, tables[0]) for table in tables):
        raise ConfigError(
            f"decode.{name}.ctc: the heads of CTC from {' and '.join(heads)} number letters differently. "
            "Generate after prompts of one modality at a time."
        )
    longest = max(states.shape[1] for _, states, _ in parts)
    scores = torch.stack([F.pad(head(x), (0, 0, 0, longest - x.shape[1])) for head, x, _ in parts])
    frames = torch.stack([valid.sum(1) for _, _, valid in parts])  # [heads, N]; a prompt has one modality
    own = scores[frames.argmax(0), torch.arange(scores.shape[1], device=scores.device)]
    beyond = cache.model.tower(name).cfg.vocabulary - len(tables[0])  # embeddings may be padded
    return CtcScorer(own, frames.amax(0), F.pad(tables[0], (0, 0, 0, beyond)))


def _heads(cache: KVCache, name: str) -> dict[str, CtcHead]:
    """Heads of CTC for answers of modality `name`, by the modality of the prompts in a cache."""
    heads = cache.model.ctc
    found = {prompt: heads.get(name, prompt) if heads else None for prompt in cache.states}
    return {prompt: head for prompt, head in found.items() if head is not None}


def doubts(cache: KVCache, name: str) -> list[str]:
    """Why CTC doubts that the prompt of each row can be transcribed; empty where it does not, or if there is
    no head."""
    found = [""] * len(cache.multimodal)
    for prompt, head in _heads(cache, name).items():
        states, valid = cache.states[prompt]
        likely, best = head(states).max(-1)
        written = valid & (best > 0)
        begins = written & F.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True)
        letters = (begins.sum(1) / valid.sum(1).clamp(min=1)).tolist()
        sure = (torch.where(written, likely.exp(), 0.0).sum(1) / written.sum(1).clamp(min=1)).tolist()
        for row in valid.any(1).nonzero()[:, 0].tolist():
            found[row] = _doubt(letters[row], sure[row], prompt)
    return found


def _doubt(letters: float, sure: float, prompt: str) -> str:
    """letters: a timestep. sure: their mean probability."""
    if letters < FEW_LETTERS:
        return f"hardly a letter is recognised: is there any {prompt} in it?"
    if sure < UNSURE:
        return f"letters are recognised with {sure:.0%} probability: noise, music or another language?"
    return ""


class JointScores:
    """Beams' scores by CTC, beside those of the tower, and the choice of their best continuations."""

    def __init__(self, scorer: CtcScorer, weight: float, beams: int, eos: int) -> None:
        """weight: of CTC; the tower's is 1 - weight."""
        self.scorer, self.weight, self.eos = scorer, weight, eos
        start = scorer.start()
        self.prefix = start.select(
            torch.arange(len(start.last), device=start.last.device).repeat_interleave(beams)
        )
        self.total = start.blank.new_zeros(len(start.last), beams)

    def joined(self, scores: Tensor) -> Tensor:
        """Joint scores [B, K] of the hypotheses, from those of the tower."""
        return self._joint(scores, self.total)

    def _joint(self, tower: Tensor, own: Tensor) -> Tensor:
        """What the tower excludes (-inf) is excluded with any weight."""
        return torch.where(tower.isneginf(), tower, (1 - self.weight) * tower + self.weight * own)

    def choose(self, scores: Tensor, likely: Tensor, closed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best continuations of each row: indices of their hypotheses, tokens, scores by the tower, [B, K].

        scores [B, K]: of the hypotheses by the tower. likely [B, K, V]: log probabilities of what may come
        next. closed bool [B, K]: hypotheses that have ended.
        """
        count, beams, vocabulary = likely.shape
        marked = likely.clone()
        marked[..., self.eos] = float("inf")  # EOS is always a candidate
        some = marked.topk(min(CANDIDATES, vocabulary)).indices  # [B, K, C]
        tower = scores[..., None] + likely.gather(2, some)
        parents = torch.arange(count * beams, device=some.device).repeat_interleave(some.shape[2])
        longer, begins = self.scorer.extended(self.prefix.select(parents), parents // beams, some.flatten())
        ends = self.scorer.whole(self.prefix).view(count, beams, 1)
        own = torch.where(some == self.eos, ends, begins.view_as(some))
        own = torch.where(closed[..., None], self.total[..., None], own)
        joint = self._joint(tower, own).flatten(1)
        best = joint.topk(beams).indices
        self.total = own.flatten(1).gather(1, best)
        offset = torch.arange(count, device=best.device)[:, None] * joint.shape[1]
        self.prefix = longer.select((offset + best).flatten())
        return best // some.shape[2], some.flatten(1).gather(1, best), tower.flatten(1).gather(1, best)


def _recurrence(added: Tensor, step: Tensor) -> Tensor:
    """Logarithms [N, T + 1] of r with r[0] = 0 and r[t] = (r[t - 1] + a[t - 1]) p[t - 1], from those of a
    (`added`) and p (`step`), [N, T]."""
    total = step.cumsum(1)
    found = total + (added - F.pad(total, (1, 0))[:, :-1]).logcumsumexp(1)
    return F.pad(found.clamp(min=NEVER), (1, 0), value=NEVER)
