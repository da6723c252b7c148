"""Requests and events: what every family's generation is asked and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, Final, Literal, overload

from manta.config import nearest
from manta.errors import MantaError, UsageError
from manta.families.options import GenerateOptions, read_options

BATCH: Final = 64
"""Texts written at once, unless it is said otherwise."""
UNFINISHED: Final = "\ufffd"
"""What stands in a draft for the first bytes of a character whose others are not written yet."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be written."""

    prompt: str | None = None
    """What the text answers to; None for none."""
    infill: str | None = None
    """A text with blanks `___` to fill, or with words `[[to change]]`; None to write freely."""
    task: str | None = None
    """Which of its tasks a model that tells some apart is asked for, such as `shorten`; None for any other."""
    history: tuple[tuple[str, str], ...] = ()
    """What was said before the prompt in a conversation, `(role, text)` each: perhaps a `system`'s, then by turns a
    `user`'s and an `assistant`'s; for models with a chat frame."""
    seed: int = 0
    """All randomness of this text, 0 … 2⁶³−1; the same seed gives the same text, alone or in any batch."""
    options: GenerateOptions | None = None
    """How to write this text; None: as the call says of all."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the input line that are not ours, passed through."""

    def __post_init__(self) -> None:
        for name in ("prompt", "infill", "task"):
            _check_text(getattr(self, name), name)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise UsageError(f"seed should be an integer, received {_shown(self.seed)}")
        checked_options(self.options)


def checked_options(options: Any) -> GenerateOptions | None:
    """Options that are some, or None.

    Raises:
        UsageError: something else is given for them, such as a dict.
    """
    if options is not None and not isinstance(options, GenerateOptions):
        raise UsageError(f"options should be GenerateOptions, such as read_options makes, received {_shown(options)}")
    return options


EventKind = Literal["draft", "done", "failed"]


@dataclass(frozen=True)
class Event:
    """What has become of one request."""

    kind: EventKind
    """A draft may still change; done is final; failed is all that a request hears that the model cannot serve."""
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
    """Masked and autoregressive models: positions computed so far for this text, the prompt's left out."""
    error: MantaError | None = None
    """Of a failed request, why."""
    chances: tuple[float, ...] = field(default=(), repr=False)
    """Confidence of each of the tokens when it was chosen, 0 … 1; 1 where it was given, 0 where there is none yet. Of
    an aligned model, which tells slots, none."""
    standing: int = 0
    """Characters at the beginning of a draft's text that no later event of the request changes; 0 where a family may
    take back any word."""

    @property
    def committed(self) -> str:
        """The beginning of the text that no later event changes."""
        return self.text if self.kind == "done" else self.text[: self.standing]


class Writer(ABC):
    """What writes: every family with its tokenizer."""

    family: str
    """Name of the family."""
    prompted: bool | None = None
    """Whether it was trained on prompts; None where that is not known."""
    fills: bool = False
    """Whether it fills blanks of a text."""
    changes: bool = False
    """Whether it changes words of a text that stands."""
    begins_rows: bool = False
    """Whether a prompt is the beginning of the row that it writes, as published models have it."""
    frame: Any = None
    """What a chat puts around a conversation, a `ChatFrame`; None: it holds none."""
    likelihood: Literal["exact", "bound", "none"] = "none"
    """Which log-likelihood of a text it has; a bound is from below."""
    estimator: str = ""
    """How that is got."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it tells apart, of which each request names one; none: it knows one task, and no request names any."""
        return ()

    def together(self, options: GenerateOptions) -> GenerateOptions:
        """What of its options a request shares with those that are written beside it; the rest is each one's own.

        Args:
            options: of a request that writes one text or chooses from several.
        """
        return options

    @property
    def left_to_right(self) -> Any:
        """What reads and writes word by word, an `AutoregressiveLM`: itself, or a part of it; None: nothing does."""
        return None

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Request],
        options: GenerateOptions | None = None,
        observer: Any = None,
        *,
        batch_size: int = BATCH,
    ) -> Iterator[Event]:
        """Write texts; yields drafts as they form, if the family has any, and one `done` or `failed` event a request.

        Args:
            requests: may have options of their own.
            options: of all requests that have none.
            observer: who watches, a `families.observer.Observer`.
            batch_size: most texts written at once.
        """

    @overload
    def write(
        self,
        prompts: str | None = None,
        *,
        infill: str | None = None,
        task: str | None = None,
        num_samples: None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        **options: Any,
    ) -> str: ...

    @overload
    def write(
        self,
        prompts: str | Iterable[str | None] | None = None,
        *,
        infill: str | Iterable[str | None] | None = None,
        task: str | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        **options: Any,
    ) -> list[str]: ...

    def write(
        self,
        prompts: Any = None,
        *,
        infill: Any = None,
        task: Any = None,
        num_samples: Any = None,
        seed: Any = 0,
        batch_size: Any = BATCH,
        **options: Any,
    ) -> str | list[str]:
        """Write texts and return them: one text for one prompt, a list for a list.

            lm.write("name[Blue Spice], eatType[pub]")                       # a text
            lm.write(["name[Blue Spice]", "name[The Mill]"])                 # a list of two
            lm.write("name[Blue Spice]", num_samples=3, temperature=1.0)     # a list of three
            lm.write(infill="The ___ is near the ___")                       # a text
            lm.write("name[The Mill]", infill="[[Come to the Mill]]", strength=0.5)  # a text, changed
            lm.write("Zizzi is a cheap pub by the river.", task="shorten")           # of a model with tasks

        Args:
            prompts: what the texts answer to: a text, or several in a list; None for no prompt.
            infill: text with blanks to fill or words to change, see `Request.infill`: one for all prompts, or a list
                with one for each.
            task: one of `tasks`, of a model that has some.
            num_samples: texts for each prompt, one after the other; with it the answer is always a list.
            seed: sample j of prompt i uses `seed + i * num_samples + j`.
            batch_size: texts written at once; it does not change them.
            options: fields of `GenerateOptions`, such as `num_steps=16` or `style="consensus"`.

        Returns:
            A text if prompt and infill are one each and `num_samples` is not given, else a list of texts in the order
            of the prompts.

        Raises:
            UsageError: an option that is unknown or has a value it cannot have, or a prompt that is no text.
            RequestError: a request that the model cannot serve, such as a prompt that is too long for it; before any
                text is written. `generate` writes the others.
        """
        ours = ("prompts", "infill", "task", "num_samples", "seed", "batch_size")
        known = [*ours, *(option.name for option in fields(GenerateOptions))]
        for name in options:
            if name not in known:
                raise UsageError(f"no option {name!r}{nearest(name, known)}")
        settings = read_options(options)
        pairs, copies = _pairs(prompts, infill), counted(1 if num_samples is None else num_samples, "num_samples", 1)
        seed = counted(seed, "seed", 0)
        requests = [
            Request(prompt=prompt, infill=blanks, task=task, seed=seed + i * copies + j)
            for i, (prompt, blanks) in enumerate(pairs)
            for j in range(copies)
        ]
        done = finished(self.generate(requests, settings, batch_size=batch_size))
        texts = [event.text for event in sorted(done, key=lambda event: event.index)]
        alone = num_samples is None and _is_one(prompts) and _is_one(infill)
        return texts[0] if alone else texts

    def __repr__(self) -> str:
        """What it is, how large, and how much it reads and writes."""
        facts, net = [f"{self.family} model"], getattr(self, "model", None)
        if net is not None:
            from manta.nets.integers import count_parameters

            facts.append(f"{count_parameters(net):,} parameters")
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


def finished(events: Iterable[Event]) -> Iterator[Event]:
    """The events of finished texts.

    Raises:
        RequestError: the model cannot serve one of the requests.
        UsageError: its options do not fit the model.
    """
    for event in events:
        if event.error is not None:
            raise event.error
        if event.kind == "done":
            yield event


def counted(value: Any, name: str, least: int) -> int:
    """An integer of at least `least`, numpy's among them."""
    if not hasattr(value, "__index__") or isinstance(value, bool) or index(value) < least:
        raise UsageError(f"{name} should be an integer of at least {least}, received {_shown(value)}")
    return index(value)


def _check_text(text: Any, name: str) -> None:
    if text is not None and not isinstance(text, str):
        raise UsageError(f"{name} should be a text (str) or None, received {_shown(text)}")
    if "\0" in (text or ""):
        raise UsageError(f"{name} holds a NUL character, which no text has; leave it out")
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
