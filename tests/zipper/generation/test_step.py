"""A column at a time: the lean step against the layers and zips themselves."""

import shutil

import pytest
import torch
from test_continuous import LONG

from conftest import tiny_model
from slow import STATISTICS, prompts
from zipper.config import SamplingConfig
from zipper.errors import ConfigError
from zipper.generation.cache import BLOCK, KVCache
from zipper.generation.continuous import ContinuousBatch
from zipper.generation.generate import generate
from zipper.generation.native_step import COMPILERS, NativeStep, library
from zipper.generation.stream import stream

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a compiler of C")


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.2)], ids=str
)
@pytest.mark.parametrize("position", ["none", "rotary", "elsewhere", "lora"])
def test_a_column_at_a_time_equals_the_layers_themselves(dtype, close, position, monkeypatch):
    """Three towers in turns, ragged rows of which one is of a single modality, and more columns than the
    buffers begin with; and the two ways of writing may follow each other in one memory."""
    names, elsewhere = ("text", "speech", "music"), position == "elsewhere"
    placed = "none" if position == "none" else "rotary"
    model = tiny_model(names, position=placed, elsewhere=elsewhere, lora=2 * (position == "lora")).to(dtype)
    monkeypatch.setattr("zipper.generation.cache.compiled", lambda: KVCache._run)
    draw = torch.Generator().manual_seed(3)
    multimodal = torch.tensor([True, True, False])
    lean, plain, mixed = (KVCache(model, multimodal) for _ in range(3))
    plain.graph = True
    for turn, name in enumerate(["text", "music", "speech", "text", "music"]):
        mixed.graph = turn % 2 == 0
        tower = model.cfg.towers[name]
        for _ in range(BLOCK + 9 if name == "speech" else 4):
            tokens = torch.randint(tower.vocabulary, (3, 1, tower.codebooks), generator=draw)
            valid = torch.rand(3, 1, generator=draw) < 0.8
            states = [cache.extend(name, tokens, valid)[valid] for cache in (lean, plain, mixed)]
            torch.testing.assert_close(states[0], states[1], rtol=0, atol=close)
            torch.testing.assert_close(states[2], states[1], rtol=0, atol=close)


@needs_compiler
@pytest.mark.parametrize("rows", [3, 21])
@pytest.mark.parametrize("position", ["none", "rotary", "elsewhere", "lora"])
def test_the_native_step_equals_the_layers_themselves(position, rows, monkeypatch):
    """With no source, one and two; ragged rows, one of a single modality; in one thread and two."""
    placed = "none" if position == "none" else "rotary"
    query = "text" if position in ("elsewhere", "lora") else "speech"  # these are of the text tower
    model = tiny_model(
        ("text", "speech", "music"),
        position=placed,
        elsewhere=position == "elsewhere",
        lora=2 * (position == "lora"),
    ).float()
    if position == "none":
        model.projections[query].kind = "paper"
    monkeypatch.setattr("zipper.generation.cache.compiled", lambda: KVCache._run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    draw = torch.Generator().manual_seed(3)
    native, plain = (KVCache(model, torch.arange(rows) != 1) for _ in range(2))
    native.query_towers = plain.query_towers = {query}
    native.native = plain.graph = True
    others = [name for name in model.names if name != query]
    for name, columns in [(query, 5), (others[0], 1), (query, BLOCK), (others[1], 1), (query, 9)]:
        tower = model.cfg.towers[name]
        for _ in range(columns):
            length = 1 if name == query else 6
            tokens = torch.randint(tower.vocabulary, (rows, length, tower.codebooks), generator=draw)
            valid = torch.rand(rows, 1, generator=draw) < 0.8
            valid = valid & (torch.arange(length) < torch.randint(1, 7, (rows, 1), generator=draw))
            states = [cache.extend(name, tokens, valid)[valid] for cache in (native, plain)]
            torch.testing.assert_close(*states, rtol=0, atol=1e-4)
            if name == query:
                logits = [cache.logits(name, one) for cache, one in zip((native, plain), states, strict=True)]
                torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert isinstance(native.single_steps[query], NativeStep)


@needs_compiler
@pytest.mark.parametrize("name", ["text", "speech"])
def test_what_the_native_step_writes_is_the_same(name):
    """By itself, guided, as a stream, in a beam and in a batch that others join and leave."""
    model = tiny_model(seed=4).float()
    other = next(one for one in model.names if one != name)
    given = prompts(model, 5, other)
    compiled = {name: SamplingConfig(compile=True)}
    expected = [out.tokens.tolist() for [out] in generate(model, given, [name], LONG)]
    assert [out.tokens.tolist() for [out] in generate(model, given, [name], LONG, compiled)] == expected
    assert together(model, name, given, compiled) == expected
    assert max(map(len, expected)) > 20
    guided = [{name: SamplingConfig(guidance=1.5, compile=one)} for one in (False, True)]
    plain, fast = ([s.tokens.tolist() for [s] in generate(model, given, [name], LONG, g)] for g in guided)
    assert fast == plain != expected
    if name == "speech":
        for prompt, [plain] in zip(given, generate(model, given, [name], LONG), strict=True):
            frames = [plain.content[:, :0], *stream(model, prompt, name, LONG, compiled)]
            assert torch.equal(torch.cat(frames, dim=1), plain.content)
    else:
        beams = [{name: SamplingConfig(beams=3, compile=one)} for one in (False, True)]
        plain, fast = ([s.tokens.tolist() for [s] in generate(model, given, [name], LONG, b)] for b in beams)
        assert fast == plain


@needs_compiler
def test_without_openmp_it_runs_in_one_thread(tmp_path, monkeypatch):
    compiler = next(filter(shutil.which, COMPILERS))
    script = tmp_path / "no-openmp"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {compiler} "$@"\n', encoding="utf-8"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    library.cache_clear()
    model = tiny_model().float()
    given = prompts(model, 20, "text")
    compiled = {"speech": SamplingConfig(compile=True)}
    plain, native = (generate(model, given, ["speech"], STATISTICS, how) for how in (None, compiled))
    assert [out.tokens.tolist() for [out] in native] == [out.tokens.tolist() for [out] in plain]
    library.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", "'no-such-compiler' does not start .*Install gcc"),
        ("false", "false cannot compile .*returned non-zero"),
    ],
)
def test_a_missing_compiler_is_named(compiler, said, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    library.cache_clear()
    model = tiny_model().float()
    with pytest.raises(ConfigError, match=said):
        generate(
            model, prompts(model, 1, "text"), ["speech"], STATISTICS, {"speech": SamplingConfig(compile=True)}
        )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_a_model_of_nan_still_stops_and_keeps_to_the_rules(compiled):
    """A training that has diverged comes to its validation all the same."""
    model = tiny_model().float()
    for parameter in model.tower("speech").parameters():
        parameter.data.fill_(torch.nan)
    how = {"speech": SamplingConfig(compile=compiled)}
    for (spoken,) in generate(model, prompts(model, 2, "text"), ["speech"], STATISTICS, how):
        assert spoken.finish_reason in ("length", "repetition")
        assert (spoken.content < model.cfg.towers["speech"].vocabulary - 3).all()


def test_a_model_in_training_is_not_written_with():
    model = tiny_model().train()
    with pytest.raises(AssertionError, match="dropout"):
        generate(model, prompts(model, 1, "text"), ["speech"], STATISTICS)


@torch.no_grad()
def together(model, name, given, how):
    """Tokens of each prompt's segment, from a batch that two prompts begin and the others join one by one."""
    batch = ContinuousBatch(model, name, LONG, how)
    rows, rest = batch.add(given[:2]), list(given[2:])
    while batch.rows or rest:
        if rest:
            rows += batch.add([rest.pop(0)])
        batch.step()
    return [row.output.tokens.tolist() for row in rows]


@needs_compiler
def test_a_folder_that_may_not_hold_programs_is_named(monkeypatch):
    def refuse(file: str) -> None:
        raise OSError(f"{file}: failed to map segment from shared object")

    library.cache_clear()
    monkeypatch.setattr("zipper.generation.native_step.ctypes.CDLL", refuse)
    with pytest.raises(ConfigError, match=r"cannot be loaded from .*failed to map segment.*TMPDIR"):
        library()
