"""What only a GPU can show. Skipped elsewhere; `make gpu` runs it."""

import copy
import random

import pytest
import torch

from broken_runs import LONG, Killed, assert_same, at_step, die
from conftest import as_batch, config, interleaving, tiny_model
from zipper.clusters import k_means
from zipper.config import SamplingConfig
from zipper.data.documents import Document
from zipper.generation.generate import SegmentGenerator, prefill
from zipper.models.losses import stream_loss
from zipper.training import run as run_module

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_padded_batches_of_any_length_have_finite_gradients_in_bfloat16():
    """Rows of cross-attention without a source token gave NaN at some shapes."""
    model = tiny_model().float().cuda().train()
    draw = random.Random(0)
    for _ in range(40):
        documents = [interleaving(model, draw, draw.randint(1, 12)) for _ in range(draw.randint(2, 9))]
        batch = as_batch(model, documents).on(torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            states = model(batch)
            losses = [stream_loss(model.tower(name), states[name], batch.streams[name]) for name in states]
        sum(losses).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_states_equal_those_of_the_cpu():
    model = tiny_model()
    batch = as_batch(model, [interleaving(model, random.Random(1), parts) for parts in (3, 7)])
    there = copy.deepcopy(model).cuda()(batch.on(torch.device("cuda")))
    for name, states in model(batch).items():
        valid = batch.streams[name].valid
        torch.testing.assert_close(there[name].cpu()[valid], states[valid], rtol=1e-9, atol=1e-9)


def test_what_is_generated_equals_that_of_the_cpu():
    model = tiny_model()
    prompts = [Document(f"{i}", interleaving(model, random.Random(i), 1).segments, True) for i in range(3)]
    found = []
    for device in ("cpu", "cuda"):
        there = copy.deepcopy(model).to(device)
        with torch.no_grad():
            generator = SegmentGenerator(prefill(there, prompts, {"speech"}), "speech", [])
            ids = [one.id for one in prompts]
            out = generator.generate([0, 1, 2], [20] * 3, SamplingConfig(), ids, 0, append_last=False)
        found.append([one.content.tolist() for one in out])
    assert found[0] == found[1]


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    "more", [[], ["train.compile=true"], ["train.activation_checkpointing=true"]], ids=str
)
def test_a_training_that_was_killed_resumes_on_the_same_device(monkeypatch, more):
    words = [*LONG, "train.accelerator=gpu", "train.precision=bf16-mixed", "train.ctc=0.3", *more]
    run_module.train(config(*words, "name=unbroken"), "x")
    at_step(monkeypatch, 3, die)
    with pytest.raises(Killed):
        run_module.train(config(*words, "name=broken"), "x")
    run_module.train(config(*words, "name=broken", "resume=auto"), "x")
    assert_same("unbroken", "broken")


def test_clusters_are_found_on_the_gpu_too():
    """Where the codebooks of a codec start."""
    x = torch.randn(50, 4, device="cuda")
    assert k_means(x, 3, 2).device == x.device
