"""Requests, options and events: what every family's generation is asked and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_type_hints

from manta.config import convert
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be written."""

    prompt: str | None = None
    """What the text answers to; None for none."""
    infill: str | None = None
    """A text with blanks `___` to fill; None to write freely."""
    seed: int = 0
    """All randomness of this text; the same seed gives the same text, alone or in any batch."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the input line that are not ours, passed through."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to write."""

    num_steps: int = 8
    """Budget of sequential network calls for a text, at least 1; never exceeded. Not for autoregressive models, whose
    calls are their words."""
    style: Literal["consensus", "diverse"] = "diverse"
    """`consensus` seeks the most agreed-on text; `diverse` draws from the distribution of human texts."""
    solver: Literal["euler", "heun", "renoise"] = "euler"
    """How the flow is followed."""
    guidance_scale: float = 1.0
    """Strength of guidance by the prompt; 1 is off, anything else doubles the flow's calls."""
    noise_scale: float | None = None
    """Standard deviation of the initial noise; None: 1 for `diverse`, 0.5 for `consensus`."""
    temperature: float = 0.0
    """Temperature of the words; 0 takes the most likely one."""
    escape_scale: float = 0.0
    """Manta-LM: how far, in units of the state, what is fed back is moved away from the direction in which its texts
    repeat (`flow.escape`); 0 is off; anything else needs the model to know the direction (`MantaLM.repetition`)."""
    decoder: Literal["", "deferred", "block", "threshold", "confidence", "remask", "first_hitting"] = ""
    """Masked models: how words are committed; empty: the model's own, else deferred commitment."""
    confidence: Literal["probability", "margin", "entropy"] = "probability"
    """Masked models: how sure the model is of a position."""
    threshold: float | None = None
    """Masked models: least confidence of a word committed beside the surest; None: the decoder's own."""
    block_length: int | None = None
    """Masked models: words of a block (block, threshold, confidence)."""
    window_masked: int | None = None
    """Masked models: most masked words in the window (deferred)."""
    window_width: int | None = None
    """Masked models: most positions in the window (deferred)."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Masked models: what is computed anew in a call: everything, the window and all after it, or the window alone."""
    refresh: int = 32
    """Masked models: words written between full calls when there is a cache; 0 makes every call a full one."""
    top_k: int | None = None
    """Autoregressive models: sample from the k likeliest words; None from all."""
    top_p: float = 1.0
    """Autoregressive models: sample from the fewest words that make up this probability, in (0, 1]."""
    flow_steps: int | None = None
    """Calls that carry the plan; None: the model's own split of the budget; 0: none, the words come without a plan."""
    rounds: int | None = None
    """Rounds of the outer loop (decode, re-encode, re-noise, integrate); None: the model's own choice."""
    max_tokens: int | None = None
    """Autoregressive and published masked models: most tokens of a text that is written freely; None: as many as the
    model writes, 128 of a published one."""
    batch_size: int = 64
    """Texts written at once."""

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(type(self)).items():
            checked = convert(annotation, getattr(self, name), spelled(name))
            object.__setattr__(self, name, checked)  # an integer is a number, too
            least = _LEAST.get(name)
            if checked is None or least is None:
                continue
            if checked < least:
                raise UsageError(f"{spelled(name)} should be {least:g} or more, received {checked:g}")
            if isinstance(checked, int) and checked > MOST:
                raise UsageError(f"{spelled(name)} should be at most {MOST:,}, received {checked}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{spelled('top_p')} should be above 0 and at most 1, received {self.top_p:g}")


MOST: Final = 1_000_000
"""Largest number that an option counts: a bound on what a slip of the hand can ask for."""
_LEAST: Final[Mapping[str, int]] = {
    "num_steps": 1,
    "guidance_scale": 0,
    "noise_scale": 0,
    "temperature": 0,
    "escape_scale": 0,
    "block_length": 1,
    "window_masked": 1,
    "window_width": 1,
    "refresh": 0,
    "top_k": 1,
    "flow_steps": 0,
    "rounds": 0,
    "max_tokens": 1,
    "batch_size": 1,
}
"""Least value of each option that has one."""


def spelled(option: str) -> str:
    """An option by its name in Python and on the command line."""
    return f"{option} (--{option.replace('_', '-')})"


EventKind = Literal["draft", "done"]


@dataclass(frozen=True)
class Event:
    """What has become of one request."""

    kind: EventKind
    """A draft may still change; done is final."""
    index: int
    """Which request, counted from 0."""
    text: str
    """The text so far."""
    tokens: tuple[int, ...]
    """Its tokens, the mask token where undecided."""
    t: float
    """Flow time reached, 0 … 1."""
    confidence: float
    """Mean probability of the tokens that stand, given ones at 1; 0 while there is none. A masked model that ranks by
    another confidence tells the mean of that one."""
    nfe: int
    """Sequential network calls so far."""
    processed: int = 0
    """Masked models: positions computed so far for this text, the prompt's left out."""


class Writer(ABC):
    """What writes: every family with its tokenizer."""

    family: str
    """Name of the family."""
    prompted: bool | None = None
    """Whether it was trained on prompts; None where that is not known."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], options: GenerateOptions | None = None) -> Iterator[Event]:
        """Write texts; yields drafts as they form, if the family has any, and one `done` event a request."""

    def write(self, prompts: Sequence[str | None], *, seed: int = 0, **options: Any) -> list[str]:
        """Write one text for each prompt and return the texts.

        Args:
            prompts: what the texts answer to; None for no prompt.
            seed: text i uses `seed + i`.
            options: fields of `GenerateOptions`.
        """
        requests = [Request(prompt=prompt, seed=seed + i) for i, prompt in enumerate(prompts)]
        done = [event for event in self.generate(requests, GenerateOptions(**options)) if event.kind == "done"]
        return [event.text for event in sorted(done, key=lambda event: event.index)]
