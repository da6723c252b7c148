"""What a model of any family writes after a context, up to a stop: what a harness's generation tasks ask for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch

from manta.autoregressive import Chooser, decode
from manta.errors import RequestError, UsageError
from manta.evaluation.questions import Questioned
from manta.families.asked import bounds, check_options
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import ROWS
from manta.families.cached import CachedReader
from manta.families.events import GenerateOptions, Request, finished
from manta.families.options import read_options
from manta.runtime import MAX_SEED, make_generator
from manta.text import MASK, NULL

LIMITS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens")
"""What others call the most tokens of a text."""
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "use_cache": (True, False),
    "early_stopping": (True, False),
}
"""Options of others that manta has none of, with the values that change nothing."""
BLANK = 64
"""Tokens of a continuation that is not told how long to be, where it is a blank to fill."""


@dataclass(frozen=True)
class Ask:
    """A context to be continued."""

    context: str
    """What stands before it."""
    until: tuple[str, ...]
    """The reply ends before the first of these."""
    limit: int | None
    """Most tokens of it; None: as many as the model writes."""
    options: GenerateOptions
    """How to write."""
    seed: int
    """Of all its draws."""
    overruled: tuple[str, ...] = ()
    """What a task asked for and whoever evaluates did not let it have."""


def read_ask(context: str, asked: Mapping[str, Any], options: Mapping[str, Any], seed: int) -> Ask:
    """A context with the arguments of a task, which say how to write where `options` leave it open.

    Without `do_sample` a temperature above 0 draws; with it off, none does.

    Args:
        context: what stands before.
        asked: `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`, `top_p`, and any option of manta's.
        options: those that whoever evaluates has given, by name, their defaults among them.
        seed: of the draws.

    Raises:
        UsageError: an argument that manta does not follow, by its name, or a value that it cannot have.
    """
    left = dict(asked)
    until = left.pop("until", None) or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    limits = [left.pop(name) for name in LIMITS if name in left]
    drawn = left.pop("do_sample", None)
    for name in [name for name in left if name in NEUTRAL]:
        if left.pop(name) not in NEUTRAL[name]:
            raise UsageError(f"a task asks for {name}={asked[name]}, which no model of manta follows; leave it out")
    if left.get("top_k") in (0, -1):
        del left["top_k"]
    if drawn is False or (drawn is None and not left.get("temperature")):
        left = {name: value for name, value in left.items() if name not in ("temperature", "top_k", "top_p")}
    elif not left.get("temperature"):
        left["temperature"] = 1.0
    known = [each.name for each in fields(GenerateOptions)]
    cuts = () if options.get("temperature") != 0 else ("top_k", "top_p")  # of what is drawn, and nothing is
    moot = [f"{name}={left.pop(name)} left out" for name in cuts if name in left and name not in options]
    if unknown := sorted(left.keys() - set(known)):
        raise UsageError(f"a task asks for {unknown[0]}={asked[unknown[0]]}, which no model of manta follows")
    task, how = read_options(left), read_options({**left, **options})
    told = [(name, getattr(how, name), getattr(task, name)) for name in options if name in left]
    lost = [f"{name}={mine} instead of {theirs}" for name, mine, theirs in told if mine != theirs]
    if drawn is False and how.temperature > 0:
        lost.append(f"temperature={how.temperature} instead of do_sample=False")
    limit = None if not limits or limits[0] is None else int(limits[0])
    if limit is not None and limit < 1:
        raise UsageError(f"a task asks for at most {limit} tokens; a reply has at least 1")
    return Ask(context, tuple(stop for stop in stops if stop), limit, how, seed, (*lost, *moot))


class Replying:
    """A model that continues contexts.

    Args:
        model: the model, with the way it takes a context.
        batch_size: replies written at once; it does not change them.
    """

    def __init__(self, model: Questioned, batch_size: int = 64) -> None:
        self.asked, self.lm, self.batch_size = model, model.lm, batch_size

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, str]]:
        """Replies as they are written, each with the number of its question.

        Raises:
            UsageError: an option that the family does not follow.
            RequestError: a context that the model has no room for.
        """
        begun = self.asked.reading == "beginning" and not self.asked.published
        left = [at for at, ask in enumerate(asks) if begun and ask.context.strip()]
        whole = sorted(set(range(len(asks))) - set(left))
        done = 0
        for numbers, write in ((whole, self._answered), (left, self._continued)):
            for at, text in write([asks[number] for number in numbers]) if numbers else ():
                done += 1
                self.asked.progress("writing", done, len(asks))
                yield numbers[at], self._cut(text, asks[numbers[at]].until)

    @staticmethod
    def _cut(text: str, until: Sequence[str]) -> str:
        return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]

    def _answered(self, asks: Sequence[Ask]) -> Iterator[tuple[int, str]]:
        """Contexts as prompts; of published models they are the beginning of the row."""
        requests = [Request(prompt=self._prompt(ask), seed=ask.seed, options=self._options(ask)) for ask in asks]
        for event in finished(self.lm.generate(requests, batch_size=self.batch_size)):
            text, limit = event.text, asks[event.index].limit
            words = [word for word in event.tokens if word not in (NULL, MASK)]
            if limit is not None and not self._bounded and len(words) > limit:
                text = self.asked.tokenizer.decode(words[:limit]).strip()
            yield event.index, text

    @property
    def _bounded(self) -> bool:
        """Whether the family has a limit of its own; aligned models have it left to right alone."""
        return bounds(self.lm.family, GenerateOptions())

    def _options(self, ask: Ask) -> GenerateOptions:
        """With the limit, where the family has one of its own."""
        if not self._bounded or ask.limit is None:
            return ask.options
        capacity = getattr(self.lm, "capacity", ask.limit)
        most = ask.options.max_tokens or ask.limit
        return replace(ask.options, max_tokens=max(1, min(ask.limit, most, capacity)))

    def _prompt(self, ask: Ask) -> str:
        """The context; where it is to be cut and does not fit beside its chat's frame, its end; of a framed one what
        stands in the frame, which whoever writes puts around it again."""
        context, frame = ask.context, getattr(self.lm, "frame", None)
        if frame is not None and context.startswith(frame.before) and context.endswith(frame.after):
            context = context[len(frame.before) : len(context) - len(frame.after)]
        elif frame is not None and context.startswith(frame.before) and frame.after in context:
            raise UsageError("a chat whose answer has begun cannot be gone on with; leave the answer's beginning out")
        if not self.asked.cut:
            return context
        prompt, text = self.asked.room
        around = 0 if frame is None else len(frame.encode("", self.asked.tokenizer))
        most = max(1, text - around - (ask.limit or 1)) if self.asked.published else prompt
        return self.asked.end_of(context, most)

    def _continued(self, asks: Sequence[Ask]) -> Iterator[tuple[int, str]]:
        """Contexts as beginnings of texts, of models that learned texts without prompts."""
        lm = self.lm.left_to_right
        if lm is not None:
            for begin in range(0, len(asks), self.batch_size):
                texts = self._left_to_right(lm, asks[begin : begin + self.batch_size])
                yield from ((begin + at, text) for at, text in enumerate(texts))
            return
        begun = [self._blank(ask) for ask in asks]
        requests = [
            Request(infill=f"{context} ___{{{blank}}}", seed=ask.seed, options=ask.options)
            for ask, (context, blank) in zip(asks, begun, strict=True)
        ]
        for event in finished(self.lm.generate(requests, batch_size=self.batch_size)):
            context, _ = begun[event.index]
            text = event.text[len(context) :] if event.text.startswith(context) else event.text
            yield event.index, text.lstrip()

    def _blank(self, ask: Ask) -> tuple[str, int]:
        """The context, its end where it is to be cut and does not fit, and the tokens of the blank behind it."""
        context, room = ask.context.rstrip(), self.asked.room[1]
        left = room - len(self.asked.tokenizer.encode(context)) - 1
        if left < 1 and self.asked.cut:
            context = self.asked.end_of(context, max(1, room - 1 - (ask.limit or room // 2)))
            left = room - len(self.asked.tokenizer.encode(context)) - 1
        if re.search(r"_{3,}|\[\[", context):
            raise RequestError(f"a context holds a blank ___ or brackets [[, which mean more here: {context[:60]!r}")
        if left < 1:
            raise RequestError(
                f"a context leaves no room for a reply in the model's {room} tokens; cut contexts at their beginning "
                f"(cut=true, --lm-eval-cut): {context[:60]!r}"
            )
        return context, min(left, ask.limit or BLANK)

    @torch.no_grad()
    def _left_to_right(self, lm: AutoregressiveLM, asks: Sequence[Ask]) -> list[str]:
        """Every context read, then word by word."""
        found: dict[int, str] = {}
        for how in dict.fromkeys(ask.options for ask in asks):
            check_options(how, lm.family)
            if how.choose > 1 or how.decoder not in ("", "sequential") or how.pattern or how.schema:
                raise UsageError("a text that goes on from a beginning is written word by word; leave its options out")
            chosen = [at for at, ask in enumerate(asks) if ask.options == how]
            given = [self._beginning(lm, asks[at]) for at in chosen]
            limits = [min(asks[at].limit or lm.capacity, how.max_tokens or lm.capacity) for at in chosen]
            ends = [min(lm.capacity, len(row) + limit) for row, limit in zip(given, limits, strict=True)]
            most = max(ends)
            empty = torch.zeros(len(chosen), 0, dtype=torch.long, device=lm.device)
            reader = CachedReader(lm.model, lm.model.memory(empty, empty.sum(1), empty.sum(1)), most + ROWS)
            draws = [make_generator(asks[at].seed % (MAX_SEED + 1)) for at in chosen] if how.temperature > 0 else ()
            choose = Chooser(temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, generators=draws)
            rows: list[list[int]] = [[] for _ in chosen]
            for step in decode(
                reader,
                choose,
                [()] * len(chosen),
                begin=lm.model.begin,
                end=lm.model.end,
                max_tokens=most,
                multiple=reader.multiple,
                given=[[*row, *[None] * (most - len(row))] for row in given],
            ):
                for row, words in zip(rows, step.words, strict=True):
                    row += words
            for at, row, known, end in zip(chosen, rows, given, ends, strict=True):
                words = [word for word in row[len(known) : end] if word != lm.model.end]
                found[at] = lm.tokenizer.decode(words, start=False).lstrip()
        return [found[at] for at in range(len(asks))]

    def _beginning(self, lm: AutoregressiveLM, ask: Ask) -> list[int]:
        tokens = lm.tokenizer.encode(ask.context.rstrip())
        if len(tokens) < lm.capacity:
            return tokens
        if not self.asked.cut:
            raise RequestError(
                f"a context takes {len(tokens)} tokens, the model writes {lm.capacity} in all; cut contexts at their "
                f"beginning (cut=true, --lm-eval-cut): {ask.context[:60]!r}"
            )
        return tokens[-max(1, lm.capacity - (ask.limit or lm.capacity // 2)) :]
