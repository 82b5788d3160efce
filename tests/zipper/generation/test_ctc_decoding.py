"""Decoding with CTC: prefix scores equal a slow sum, and beam search finds the best of all answers."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from conftest import module_for, tiny_model
from zipper.config import SamplingConfig
from zipper.data.documents import Document, Segment, segment
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.continuous import ContinuousBatch
from zipper.generation.ctc import CANDIDATES, CtcScorer, JointScores, _doubt, doubts
from zipper.generation.generate import generate
from zipper.modalities.layout import TokenLayout
from zipper.models.ctc import CtcHead, CtcHeads

FRAMES, LETTERS = 4, 3  # a, b, c after the blank
SPELLED = [(), (1,), (2,), (1, 1), (2, 3, 1)]  # tokens


def all_answers(scores: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    """Log probability of every answer, summed over its paths [T]."""
    found: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        answer = tuple(code for code, _ in itertools.groupby(path) if code)
        found.setdefault(answer, []).append(sum(scores[t, code] for t, code in enumerate(path)))
    return {answer: torch.stack(paths).logsumexp(0) for answer, paths in found.items()}


@pytest.fixture
def scores():
    return (
        torch.randn(2, FRAMES, 1 + LETTERS, generator=torch.Generator().manual_seed(0))
        .double()
        .log_softmax(-1)
    )


def table():
    rows = torch.zeros(len(SPELLED), 3, dtype=torch.int64)
    for token, letters in enumerate(SPELLED):
        rows[token, : len(letters)] = torch.tensor(letters, dtype=torch.int64)
    return rows


@pytest.mark.parametrize("frames", [FRAMES, FRAMES - 1])
def test_scores_of_prefixes_are_those_of_all_answers_that_begin_with_them(scores, frames):
    counts = torch.tensor([FRAMES, frames])
    scorer = CtcScorer(scores, counts, table())
    for tokens in [(1,), (1, 2), (3,), (2, 2), (4,), (1, 0, 1), (3, 1)]:
        prefix, rows = scorer.start(), torch.arange(2)
        for token in tokens:
            prefix, begins = scorer.extended(prefix, rows, torch.full((2,), token))
        spelled = tuple(itertools.chain(*(SPELLED[token] for token in tokens)))
        for row in (0, 1):
            known = all_answers(scores[row, : counts[row]])
            starts = [p for answer, p in known.items() if answer[: len(spelled)] == spelled]
            expected = torch.stack(starts).logsumexp(0) if starts else torch.tensor(-1e29)
            if expected < -1e20:
                assert begins[row] < -1e20
                continue
            torch.testing.assert_close(begins[row], expected)
            whole = known.get(spelled)
            if whole is not None:
                torch.testing.assert_close(scorer.whole(prefix)[row], whole)


def test_beam_search_finds_the_best_sum_of_both_scores_among_all_answers(scores):
    """One row; a tower that gives every token the same probabilities; as many beams as answers."""
    likely = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15]).double().log()  # token 0: EOS
    weight, beams, longest = 0.4, 200, 3
    joint = JointScores(CtcScorer(scores[:1], torch.tensor([FRAMES]), table()), weight, beams, eos=0)
    tower = torch.full((1, beams), float("-inf")).double()
    tower[:, 0] = 0.0
    history, closed = torch.zeros(1, beams, 0, dtype=torch.int64), torch.zeros(1, beams, dtype=torch.bool)
    for at in range(longest + 1):
        only = torch.full((5,), float("-inf")).double()
        only[0] = 0.0
        steps = torch.where(closed[..., None] | (at == longest), only, likely)
        parent, token, tower = joint.choose(tower, steps, closed)
        history = torch.cat([history.gather(1, parent[..., None].expand_as(history)), token[..., None]], 2)
        closed = closed.gather(1, parent) | (token == 0)
    found = joint.joined(tower)[0]
    best = tuple(token for token in history[0, found.argmax()].tolist() if token)
    known = all_answers(scores[0])
    expected = {}
    for length in range(longest + 1):
        for tokens in itertools.product(range(1, 5), repeat=length):
            spelled = tuple(itertools.chain(*(SPELLED[token] for token in tokens)))
            own = sum(likely[list(tokens)]) + (likely[0] if length < longest else 0.0)
            if spelled in known:
                expected[tokens] = (1 - weight) * own + weight * known[spelled]
    assert best == max(expected, key=lambda tokens: float(expected[tokens]))
    torch.testing.assert_close(found.max(), torch.as_tensor(max(expected.values())))


def test_an_answer_may_end_where_ctc_hears_no_more_though_the_tower_would_not():
    """EOS is the least likely of more tokens than CTC scores."""
    silent = torch.tensor([9.0, 0.0, 0.0, 0.0]).log_softmax(0).expand(1, FRAMES, 4)
    spelled = torch.tensor([[0], *([1 + token % 3] for token in range(2 * CANDIDATES))])
    joint = JointScores(CtcScorer(silent, torch.tensor([FRAMES]), spelled), 0.9, 1, eos=0)
    likely = torch.linspace(-2.0, 0.0, len(spelled)).log_softmax(0)[None, None]
    _, token, _ = joint.choose(torch.zeros(1, 1), likely, torch.zeros(1, 1, dtype=torch.bool))
    assert token.tolist() == [[0]]


@pytest.fixture
def model(dataset):
    """An untrained model with a head of CTC."""
    module = module_for(dataset, "train.tasks={asr: 1}")
    network = module.model.double().eval()
    widths = {name: network.tower(name).cfg.width for name in network.names}
    network.ctc = CtcHeads.of(widths, ["asr"], dataset.modalities).double()
    torch.nn.init.normal_(network.ctc.get("text", "speech").linear.weight, std=0.5)
    return network, module.statistics


def prompts(dataset, count=5):
    speech = dataset.modalities["speech"]
    rows = [*dataset.splits["train"]][:count]
    return [Document(row["id"], [segment(speech, speech.content(row))], multimodal=True) for row in rows]


def test_a_batch_is_decoded_as_each_recording_alone(model, dataset):
    network, statistics = model
    how = {"text": SamplingConfig(beams=3, ctc=0.5)}
    given = prompts(dataset)
    together = generate(network, given, ["text"], statistics, how)
    for prompt, [found] in zip(given, together, strict=True):
        [[alone]] = generate(network, [prompt], ["text"], statistics, how)
        assert torch.equal(found.tokens, alone.tokens)


def test_a_head_that_is_sure_decides_what_is_written(model, dataset):
    """With CTC alone, what is written spells the head's best letters, as far as tokens can."""
    network, statistics = model
    head = network.ctc.get("text", "speech")
    torch.nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        head.linear.bias.fill_(-20.0)
        head.linear.bias[0] = 0.0  # blank, everywhere: nothing is said
    [[silent]] = generate(
        network, prompts(dataset, 1), ["text"], statistics, {"text": SamplingConfig(ctc=1.0)}
    )
    assert silent.content.shape[1] == 0
    with torch.no_grad():
        head.linear.bias[:3] = torch.tensor([-3.0, 0.0, -1.0])
    [[found]] = generate(
        network, prompts(dataset, 1), ["text"], statistics, {"text": SamplingConfig(beams=3, ctc=1.0)}
    )
    assert found.content.shape[1] > 0


def test_tokens_beyond_the_tokenizer_spell_nothing(model, dataset):
    """Embeddings of language models are padded."""
    network, statistics = model
    head = network.ctc.get("text", "speech")
    head.table = head.table[:8]
    [[found]] = generate(
        network, prompts(dataset, 1), ["text"], statistics, {"text": SamplingConfig(beams=3, ctc=0.5)}
    )
    assert found.finish_reason


def test_a_model_without_a_head_is_refused(model, dataset):
    network, statistics = model
    network.ctc = None
    with pytest.raises(ConfigError, match=r"decode\.text\.ctc: no head of CTC.*train\.ctc=0\.3"):
        generate(network, prompts(dataset, 1), ["text"], statistics, {"text": SamplingConfig(ctc=0.3)})


@pytest.mark.parametrize(
    ("bias", "doubt"),
    [
        ((9.0, 0.0), "hardly a letter is recognised: is there any speech in it?"),
        ((0.0, 9.0), ""),
        ((0.0, 0.1), "letters are recognised with"),
    ],
)
def test_an_answer_to_what_is_no_speech_is_doubted(model, dataset, bias, doubt):
    """Blank and one letter of these scores in turn; whatever is decoded, alone and in a batch."""
    network, statistics = model
    head = network.ctc.get("text", "speech")
    blank, letter = bias
    forward = head.forward

    def alternating(states):
        scores = torch.full_like(forward(states), -1e3)
        scores[..., 0], scores[..., 1] = blank, 0.0
        scores[:, ::2, 1] = letter
        return scores.log_softmax(-1)

    head.forward = alternating
    given = prompts(dataset)
    together = generate(network, given, ["text"], statistics)
    for prompt, [found] in zip(given, together, strict=True):
        [[alone]] = generate(network, [prompt], ["text"], statistics)
        assert found.doubt == alone.doubt
        assert found.doubt.startswith(doubt)
        assert bool(found.doubt) == bool(doubt)
    batch = ContinuousBatch(network, "text", statistics)
    rows = batch.add(given)
    while batch.rows:
        batch.step()
    assert [row.output.doubt for row in rows] == [found.doubt for [found] in together]
    network.ctc = None
    [[without]] = generate(network, given[:1], ["text"], statistics)
    assert without.doubt == ""


@pytest.mark.parametrize(
    ("letters", "sure", "doubt"),
    [(0.09, 0.99, "hardly a letter"), (0.11, 0.71, ""), (0.11, 0.69, "letters are recognised with 69%")],
)
def test_real_speech_has_a_letter_in_ten_timesteps_and_is_read_with_70_percent(letters, sure, doubt):
    """Limits that no dev recording of real speech falls below."""
    found = _doubt(letters, sure, "speech")
    assert found.startswith(doubt)
    assert bool(found) == bool(doubt)


def test_letters_beyond_the_end_of_a_prompt_do_not_count():
    """A silent prompt of 20 timesteps, padded with letters to the 40 of another one, and 8 that begin with
    their only letter."""
    silent, spoken = torch.tensor([[0.98, 0.01, 0.01], [0.02, 0.96, 0.02]]).log()
    states = spoken.repeat(3, 40, 1)
    states[:, ::2] = silent
    states[0, :20] = states[2, 1:] = silent
    states[2, 0] = spoken
    valid = torch.arange(40) < torch.tensor([[20], [40], [8]])

    class Head:
        prompt = "speech"

        def __call__(self, given):
            return given

    heads = SimpleNamespace(get=lambda *_: Head())
    states = {"speech": (states, valid)}
    cache = SimpleNamespace(model=SimpleNamespace(ctc=heads), states=states, multimodal=torch.ones(3))
    short, long, first = doubts(cache, "text")
    assert short.startswith("hardly a letter")
    assert long == first == ""


def test_a_letter_that_is_held_is_one_letter(model, dataset):
    """As a hum is: hardly a letter is recognised in it."""
    network, statistics = model
    head = network.ctc.get("text", "speech")
    torch.nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        head.linear.bias.fill_(-20.0)
        head.linear.bias[1] = 0.0
    given = prompts(dataset)
    assert any(len(prompt.segments[0].tokens) > 10 for prompt in given)
    for prompt, [found] in zip(given, generate(network, given, ["text"], statistics), strict=True):
        assert found.doubt.startswith("hardly a letter") == (len(prompt.segments[0].tokens) > 10)


@pytest.mark.parametrize("scored", [False, True])
def test_prompts_of_two_modalities_in_a_batch_get_what_they_get_alone(scored):
    network = tiny_model(("text", "speech", "music"), layers=4).eval()
    table = torch.zeros(11, 2, dtype=torch.int64)
    table[2:, 0] = torch.arange(1, 10)
    heads = {}
    for at, name in enumerate(("speech", "music")):
        head = CtcHead(network.tower(name).cfg.width, table, name, "text").double()
        torch.nn.init.normal_(head.linear.weight, std=0.3, generator=torch.Generator().manual_seed(at))
        heads[f"text_from_{name}"] = head
    network.ctc = CtcHeads(heads)
    statistics = of_prompts(("text", "speech", "music"))
    given = [noise(network, name, length) for name, length in (("speech", 8), ("music", 6), ("speech", 3))]
    decode = {"text": SamplingConfig(beams=3, ctc=0.3)} if scored else {}
    together = generate(network, given, ["text"], statistics, decode)
    for prompt, [found] in zip(given, together, strict=True):
        [[alone]] = generate(network, [prompt], ["text"], statistics, decode)
        assert torch.equal(found.content, alone.content)
        assert found.doubt == alone.doubt != ""
    if not scored:
        rows = ContinuousBatch(network, "text", statistics).add(given)
        assert [row.doubt for row in rows] == [found.doubt for [found] in together]


def of_prompts(names: tuple[str, ...]) -> DatasetStatistics:
    rates = {"text": 4.0, "speech": 25.0, "music": 10.0}
    reads, longest = dict.fromkeys(names, ""), dict.fromkeys(names, 20)
    return DatasetStatistics("", reads, rates, {}, longest, {a: dict.fromkeys(names, 1.0) for a in names}, {})


def noise(network, name: str, length: int) -> Document:
    layout = TokenLayout.of(network.cfg.towers[name])
    draw = torch.Generator().manual_seed(length)
    tokens = layout.tokens(torch.randint(layout.codes, (layout.codebooks, length), generator=draw))
    unscored = torch.zeros_like(tokens, dtype=torch.bool)
    return Document(str(length), [Segment(name, tokens, unscored, 0.0)], True)
