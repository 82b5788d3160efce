"""Sound in pieces is the sound of the whole: decoders, and speech while it is generated."""

import random

import pytest
import torch
from encodec.modules import SEANetDecoder

import zipper
from zipper.codecs.codec import REACH, Codec, _without_onednn, build_zipper_codec
from zipper.codecs.streaming import DecoderStream
from zipper.config import TrainCodecConfig
from zipper.modalities.layout import TokenLayout

RATIOS = [4, 4, 5, 8]


def codec(causal: bool, lstm: bool = False) -> Codec:
    """Random weights. The codes are large, so that every frame sounds."""
    torch.manual_seed(0)
    shape = TrainCodecConfig(filters=4, dimension=8, ratios=RATIOS, codebooks=2, codes=16, causal=causal)
    model = build_zipper_codec(shape)
    if lstm:
        model.decoder = SEANetDecoder(
            dimension=8, n_filters=4, ratios=RATIOS, lstm=1, true_skip=True, causal=causal
        )
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_()
    made = Codec(model, 2, 1.0, "random")
    if not lstm:
        made.reach, made.reflected = (REACH, 0 if causal else REACH // 2), 0
    return made


@pytest.mark.parametrize(("causal", "lstm"), [(True, False), (False, False), (True, True)])
def test_pieces_joined_are_the_whole(causal, lstm):
    one, draw = codec(causal, lstm), random.Random(0)
    codes = torch.randint(0, 16, (2, 60))
    whole = one.decode(codes)
    for _ in range(8):
        stream, pieces, at = DecoderStream(one), [], 0
        while at < 60:
            count = draw.choice([0, 1, 2, 7, 25])
            pieces.append(stream.push(codes[:, at : at + count]))
            at += count
            if causal:
                waits = min(at, 60) < one.reflected
                assert sum(map(len, pieces)) == (0 if waits else min(at, 60) * one.hop)
            assert lstm or stream.codes.shape[1] <= REACH + 25 + REACH // 2  # memory is bounded
        pieces.append(stream.push(codes[:, :0], last=True))
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("pattern", ["delay", "parallel"])
@pytest.mark.parametrize("codebooks", [1, 2, 4])
def test_frames_are_handed_out_once_all_their_codebooks_are_known(pattern, codebooks):
    layout = TokenLayout.after(10, codebooks, pattern)
    content = torch.randint(0, 10, (codebooks, 6))
    tokens = layout.tokens(content)
    lag = (codebooks - 1) * (pattern == "delay")
    for length in range(1, len(tokens) + 1):
        known = layout.complete(tokens[:length])
        assert known.shape[1] == min(6, max(0, length - 1 - lag))
        assert torch.equal(known, content[:, : known.shape[1]])


def test_streamed_speech_is_the_synthesized_speech():
    model = zipper.Zipper.from_pretrained("assets/zipped")
    text = "why did helen give the blue wallet to the quiet singer"
    whole = model.synthesize(text)
    pieces = [*model.stream(text, seconds=0.3)]
    assert len(pieces) > 4
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)
    sampled = model.generate([{"text": text}], ["speech"], seed=3, overrides=["speech.temperature=0.8"])
    again = [*model.stream(text, seed=3, overrides=["speech.temperature=0.8"])]
    torch.testing.assert_close(torch.cat(again), sampled[0][0].value, rtol=0, atol=1e-5)
    with pytest.raises(zipper.ConfigError, match="has digits"):
        next(model.stream("1!"))


def test_onednn_stays_off_until_the_last_thread_has_decoded():
    enabled = torch._C._get_mkldnn_enabled
    before = enabled()
    with _without_onednn():
        with _without_onednn():
            assert not enabled()
        assert not enabled()
    assert enabled() == before
