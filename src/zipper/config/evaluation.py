"""Settings of decoding, evaluation and the ASR scorer."""

from dataclasses import dataclass
from typing import Literal

from zipper.config.fields import Section, setting, task_name
from zipper.errors import ConfigError

SAMPLED = ("top_k", "top_p", "candidates")  # settings of decoding that need a temperature


@dataclass
class SamplingConfig(Section):
    KEY = "decode.NAME"

    temperature: float = setting(0.0, "sampling temperature; 0: greedy decoding", at_least=0)
    top_k: int | None = setting(None, "sample from the k most likely tokens; none: all", at_least=1)
    top_p: float = setting(
        1.0, "sample from the most likely tokens with this total probability", above=0, at_most=1
    )
    candidates: int = setting(
        1,
        "samples, of which the one is kept from which the model is most likely to generate the prompt; "
        "needs a temperature and the task of the way back",
        at_least=1,
    )
    guidance: float = setting(
        1.0,
        "classifier-free guidance: log probabilities without the prompt, plus this factor times their "
        "difference to those with it; 1: none, other factors cost a second row of the batch",
        at_least=0,
    )
    beams: int = setting(
        1, "beams of beam search, for modalities of one codebook; 1: no beam search", at_least=1, at_most=4096
    )
    ctc: float = setting(
        0.0,
        "weight of CTC's log probability in beam search, beside the tower's (1 - ctc); needs train.ctc",
        at_least=0,
        at_most=1,
    )
    compile: bool = setting(
        False,
        "compile the decoding step: on a CPU by its compiler of C, in a second (float32 only); on a GPU by "
        "torch.compile, in a minute or more",
    )

    @property
    def searches(self) -> bool:
        """Whether it is beam search, which knows no token before the end."""
        return self.beams > 1 or self.ctc > 0

    @property
    def incremental(self) -> bool:
        """Whether tokens are final as soon as they are generated: no beam search, no best of samples."""
        return not self.searches and self.candidates == 1

    @property
    def guided(self) -> bool:
        """Whether each prompt has a second row, without it."""
        return self.guidance != 1

    @property
    def rows(self) -> int:
        """Rows of a batch that one prompt takes."""
        return max(self.beams, self.candidates) * (2 if self.guided else 1)

    def check(self, name: str) -> None:
        """Raises ConfigError if the settings of modality `name` contradict each other."""
        sampled = [key for key in SAMPLED if getattr(self, key) != getattr(SamplingConfig(), key)]
        if self.temperature == 0 and sampled:
            raise ConfigError(
                f"decode.{name}.{sampled[0]}={getattr(self, sampled[0])} is for sampling, but "
                f"decode.{name}.temperature=0 is greedy. Give a temperature, or leave it out."
            )
        if self.searches and self.temperature > 0:
            raise ConfigError(
                f"decode.{name}: beams={self.beams} and ctc={self.ctc:g} search, temperature="
                f"{self.temperature} samples. Set one, not both."
            )
        if self.searches and self.guided:
            raise ConfigError(
                f"decode.{name}: beam search (beams={self.beams}, ctc={self.ctc:g}) has no guidance="
                f"{self.guidance:g}. Set one, not both."
            )

    def check_incremental(self, name: str) -> None:
        """Raises ConfigError if tokens of modality `name` are known at the end alone."""
        if not self.incremental:
            raise ConfigError(
                f"decode.{name}.beams={self.beams} with ctc={self.ctc:g} and candidates={self.candidates}: "
                "the best is known at the end, so nothing comes before it. Give beams=1, ctc=0 and "
                "candidates=1."
            )

    def describe(self) -> str:
        """Description of the decoding method for a result file."""
        if self.searches:
            with_ctc = f", CTC {self.ctc:g}" if self.ctc else ""
            return f"beam search, {self.beams} beams{with_ctc}"
        guided = f", guidance {self.guidance:g}" if self.guided else ""
        if self.temperature == 0:
            return f"greedy{guided}"
        best = f", best of {self.candidates}" if self.candidates > 1 else ""
        top = f"top-k {self.top_k or 'all'}, top-p {self.top_p:g}"
        return f"sampled, temperature {self.temperature:g}, {top}{best}{guided}"


@dataclass
class EvaluateConfig(Section):
    KEY = "evaluate"

    split: Literal["train", "dev", "test"] = setting("test", "split to evaluate on")
    tasks: list[str] = setting(
        [], "tasks that are validated and evaluated, such as asr or tts; none: all trained tasks"
    )
    chains: list[str] = setting(
        [], "chains to evaluate, such as speech>text>speech: the first modality is the prompt, the others "
        "are generated in order, and the last is scored"
    )  # fmt: skip
    batch: int = setting(100, "utterances decoded in one batch", at_least=1)
    checkpoint: Literal["best", "last"] = setting("best", "best: checkpoint with the lowest dev WER")
    dev_utterances: int = setting(300, "utterances transcribed at each validation", at_least=1)
    dev_spoken: int = setting(60, "sentences synthesized and scored by ASR at each validation", at_least=1)
    spoken: int | None = setting(
        None,
        "number of sentences of the split to synthesize and score, from the first; none: all",
        at_least=1,
    )
    samplings: int = setting(1, "syntheses of every test sentence, with consecutive seeds", at_least=1)
    audio_samples: int = setting(
        8, "synthesized sentences saved as wav and png, and logged to W&B", at_least=0
    )
    mismatched: bool = setting(
        True, "mismatched-audio control: decode again with another utterance's audio for each sentence"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tasks = [task_name(task) for task in self.tasks]


@dataclass
class AsrScorerConfig(Section):
    KEY = "asr_scorer"

    kind: Literal["whisper", "wav2vec2"] = setting(
        "whisper", "ASR scorer: faster-whisper, or torchaudio's WAV2VEC2_ASR_BASE_960H (downloaded once)"
    )
    model: str | None = setting(
        None,
        "size or folder of a Whisper model, or weights file of wav2vec2; none: tiny.en from the extra "
        "`scorer`, or the download; base: from the extra `scorer-base`, if installed, or the download",
    )
