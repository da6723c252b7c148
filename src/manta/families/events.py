"""Requests, options and events: what every family's generation is asked and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, Final, Literal, get_type_hints, overload

from manta.config import convert, from_dict, nearest
from manta.errors import UsageError

Style = Literal["consensus", "diverse"]
SolverName = Literal["euler", "heun", "renoise"]
DecoderName = Literal["", "deferred", "block", "threshold", "confidence", "remask", "first_hitting"]
Confidence = Literal["probability", "margin", "entropy"]
CacheKind = Literal["none", "prefix", "dual"]


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

    def __post_init__(self) -> None:
        for name in ("prompt", "infill"):
            _check_text(getattr(self, name), name)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise UsageError(f"seed should be an integer, received {_shown(self.seed)}")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to write."""

    num_steps: int = 8
    """Budget of sequential network calls for a text, at least 1; never exceeded. Not for autoregressive models, whose
    calls are their words."""
    style: Style = "diverse"
    """`consensus` seeks the most agreed-on text; `diverse` draws from the distribution of human texts."""
    solver: SolverName = "euler"
    """How the flow is followed."""
    guidance_scale: float = 1.0
    """Manta-LM: strength of guiding the plan by the prompt; 1 is off, anything else takes two calls where one was."""
    noise_scale: float | None = None
    """Standard deviation of the initial noise; None: 1 for `diverse`, 0.5 for `consensus`."""
    temperature: float = 0.0
    """Temperature of the words; 0 takes the most likely one."""
    escape_scale: float = 0.0
    """Manta-LM: how far, in units of the state, what is fed back is moved away from the direction in which its texts
    repeat (`flow.escape`); 0 is off; anything else needs the model to know the direction (`MantaLM.repetition`)."""
    decoder: DecoderName = ""
    """Masked models: how words are committed; empty: the model's own, else deferred commitment."""
    confidence: Confidence = "probability"
    """Masked models: how sure the model is of a position."""
    threshold: float | None = None
    """Masked models: least confidence of a word committed beside the surest; None: the decoder's own."""
    block_length: int | None = None
    """Masked models: words of a block (block, threshold, confidence)."""
    window_masked: int | None = None
    """Masked models: most masked words in the window (deferred)."""
    window_width: int | None = None
    """Masked models: most positions in the window (deferred)."""
    cache: CacheKind = "none"
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
    """An option as messages name it; the command line turns it into its own spelling."""
    return f"`{option}`"


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
    tokens: tuple[int, ...] = field(repr=False)
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
    likelihood: Literal["exact", "bound", "none"] = "none"
    """Which log-likelihood of a text it has; a bound is from below."""
    estimator: str = ""
    """How that is got."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], options: GenerateOptions | None = None) -> Iterator[Event]:
        """Write texts; yields drafts as they form, if the family has any, and one `done` event a request."""

    @overload
    def write(
        self,
        prompts: str | None = None,
        *,
        infill: str | None = None,
        num_samples: None = None,
        seed: int = 0,
        **options: Any,
    ) -> str: ...

    @overload
    def write(
        self,
        prompts: str | Iterable[str | None] | None = None,
        *,
        infill: str | Iterable[str | None] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[str]: ...

    def write(
        self,
        prompts: Any = None,
        *,
        infill: Any = None,
        num_samples: Any = None,
        seed: Any = 0,
        **options: Any,
    ) -> str | list[str]:
        """Write texts and return them: one text for one prompt, a list for a list.

            lm.write("name[Blue Spice], eatType[pub]")                       # a text
            lm.write(["name[Blue Spice]", "name[The Mill]"])                 # a list of two
            lm.write("name[Blue Spice]", num_samples=3, temperature=1.0)     # a list of three
            lm.write(infill="The ___ is near the ___")                       # a text

        Args:
            prompts: what the texts answer to: a text, or several in a list; None for no prompt.
            infill: text with blanks to fill, see `Request.infill`: one for all prompts, or a list with one for each.
            num_samples: texts for each prompt, one after the other; with it the answer is always a list.
            seed: sample j of prompt i uses `seed + i * num_samples + j`.
            options: fields of `GenerateOptions`, such as `num_steps=16` or `style="consensus"`.

        Returns:
            A text if prompt and infill are one each and `num_samples` is not given, else a list of texts in the order
            of the prompts.

        Raises:
            UsageError: an option that is unknown or has a value it cannot have, or a prompt that is no text.
            RequestError: a request that the model cannot serve, such as a prompt that is too long for it.
        """
        known = [option.name for option in fields(GenerateOptions)]
        for name in options:
            if name not in known:
                raise UsageError(f"no option {name!r}{nearest(name, ['prompts', 'infill', 'num_samples', *known])}")
        settings = from_dict(GenerateOptions, options)
        pairs, copies = _pairs(prompts, infill), _counted(1 if num_samples is None else num_samples, "num_samples", 1)
        seed = _counted(seed, "seed", 0)
        requests = [
            Request(prompt=prompt, infill=blanks, seed=seed + i * copies + j)
            for i, (prompt, blanks) in enumerate(pairs)
            for j in range(copies)
        ]
        done = [event for event in self.generate(requests, settings) if event.kind == "done"]
        texts = [event.text for event in sorted(done, key=lambda event: event.index)]
        alone = num_samples is None and _is_one(prompts) and _is_one(infill)
        return texts[0] if alone else texts

    def __repr__(self) -> str:
        """What it is, how large, and how much it reads and writes."""
        facts, net = [f"{self.family} model"], getattr(self, "model", None)
        if net is not None:
            facts.append(f"{sum(p.numel() for p in net.parameters()):,} parameters")
            facts.append(f"up to {net.config.max_prompt} tokens of prompt and {net.config.max_text} of text")
            facts.append(f"on {next(net.parameters()).device}")
        return f"<{type(self).__name__}: {', '.join(facts)}>"


def _is_one(given: Any) -> bool:
    return given is None or isinstance(given, str)


def _pairs(prompts: Any, infill: Any) -> list[tuple[str | None, str | None]]:
    """Prompts with what is to be filled; one of either serves all of the other.

    Raises:
        UsageError: something else than texts, or lists of different lengths.
    """
    given, blanks = _listed(prompts, "prompts"), _listed(infill, "infill")
    if _is_one(prompts):
        given *= len(blanks)
    elif _is_one(infill):
        blanks *= len(given)
    if len(given) != len(blanks):
        raise UsageError(f"{len(given)} prompts and {len(blanks)} texts to fill; give one for each, or one for all")
    return list(zip(given, blanks, strict=True))


def _listed(given: Any, name: str) -> list[str | None]:
    """One text or several as a list, checked."""
    if _is_one(given):
        given = [given]
    elif not isinstance(given, Iterable) or isinstance(given, bytes | bytearray | Mapping | Set):
        raise UsageError(f"{name} should be a text, a list of texts or None, received {_shown(given)}")
    found = list(given)
    for i, text in enumerate(found):
        _check_text(text, name if len(found) == 1 else f"{name}[{i}]")
    return found


def _counted(value: Any, name: str, least: int) -> int:
    """An integer of at least `least`, numpy's among them."""
    if not hasattr(value, "__index__") or isinstance(value, bool) or index(value) < least:
        raise UsageError(f"{name} should be an integer of at least {least}, received {_shown(value)}")
    return index(value)


def _check_text(text: Any, name: str) -> None:
    if text is not None and not isinstance(text, str):
        raise UsageError(f"{name} should be a text (str) or None, received {_shown(text)}")
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} holds half a surrogate pair at character {error.start}, which is no Unicode text; write the "
            "character whole"
        ) from error


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"
