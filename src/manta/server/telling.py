"""From what a model has written to what a client reads: OpenAI's objects, whole or as a stream."""

import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from manta.families.asked import follows
from manta.families.events import UNFINISHED, Event, Request
from manta.server.asking import Asked
from manta.server.engine import Writing
from manta.server.guard import refusal, status_of
from manta.text import MASK, NULL, Tokenizer

DONE: Final = b"data: [DONE]\n\n"
"""Last event of a stream."""


@dataclass(frozen=True)
class Form:
    """How an endpoint tells texts."""

    name: str
    """Object of an answer."""
    chunk: str
    """Object of a chunk of a stream."""
    prefix: str
    """Of an answer's id."""
    chat: bool = False
    """A choice holds a message, not a text."""


FORMS: Final = {
    "completion": Form("text_completion", "text_completion", "cmpl"),
    "chat": Form("chat.completion", "chat.completion.chunk", "chatcmpl", chat=True),
    "infill": Form("infill", "infill.chunk", "fill"),
    "edit": Form("edit", "edit.chunk", "edit"),
}


@dataclass
class Choice:
    """A text as it is told.

    Args:
        lm: the model.
        asked: the whole request.
        index: which text of it.
    """

    lm: Any
    asked: Asked
    index: int
    sent: str = field(default="", init=False)
    """What a stream has told of it."""
    begun: bool = field(default=False, init=False)
    """A stream has said whose the text is."""

    def ended(self, event: Event) -> tuple[str, str, int]:
        """`(text, why it ends, its tokens)` of a finished text."""
        text, why, encode = event.text, "stop", self.lm.tokenizer.encode
        count, ended = self._words(event)
        most, wanted = self.asked.most, self.asked.wanted
        if most is not None and len(ids := encode(text)) > most:
            text, why = (
                self.lm.tokenizer.decode(ids[: self.lm.tokenizer.whole(ids[:most])]).rstrip(UNFINISHED),
                "length",
            )
            count = most
        elif most is None and wanted is not None and count >= wanted and not ended:
            why = "length"
        cut = _cut(text, self.asked.stops)
        if cut is not None:
            text, why = text[:cut], "stop"
            count = len(encode(text))
        return self.asked.before[self.index] + text, why, count

    def _words(self, event: Event) -> tuple[int, bool]:
        """How many tokens of an event are a text's own, and whether one that ends it was written."""
        if self._ours:
            return sum(token not in (NULL, MASK) for token in event.tokens), False
        ends = {getattr(self.lm, "eos_id", None)}
        if self.lm.frame is not None:
            ends.add(self.lm.tokenizer.id_of(self.lm.frame.end))
        place = next((place for place, token in enumerate(event.tokens) if token in ends), None)
        return (len(event.tokens), False) if place is None else (place, True)

    def more(self, event: Event) -> str:
        """What a draft adds to what stands; nothing is told that a later event, a stop or a bound takes back."""
        standing = event.committed.rstrip(UNFINISHED)
        if self.asked.most is not None:
            return ""
        cut = _cut(standing, self.asked.stops)
        if cut is None:
            standing = standing[: len(standing) - _begun(standing, self.asked.stops)]
        else:
            standing = standing[:cut]
        return self._new(self.asked.before[self.index] + standing)

    def rest(self, text: str) -> str:
        """What a stream has not told yet of a finished text."""
        return self._new(text)

    def _new(self, text: str) -> str:
        if len(text) <= len(self.sent) or not text.startswith(self.sent):
            return ""
        added, self.sent = text[len(self.sent) :], text
        return added

    def frame(self, event: Event) -> dict[str, Any]:
        """A draft for people to look at: what each token says, and how sure it is."""
        chances = [round(chance, 4) for chance in event.chances] or [None] * len(event.tokens)
        words = [
            [self._said(token), chance]
            for token, chance in zip(event.tokens, chances, strict=True)
            if not (token == NULL and self._ours)
        ]
        options = self.asked.requests[self.index].options
        assert options is not None, "every request of the server has options"
        budgeted = follows(self.lm.family, "num_steps") and options.decoder not in ("sequential", "verified")
        return {
            "type": "diffusion_frame",
            "index": self.index,
            "step": event.nfe,
            "total": options.num_steps if budgeted else None,
            "text": event.text,
            "t": round(event.t, 4) if budgeted else None,
            "confidence": round(event.confidence, 4),
            "words": words,
        }

    def _said(self, token: int) -> str | None:
        """What a token says; None for a place without a word."""
        mask = MASK if self._ours else getattr(self.lm, "mask_id", None)
        return None if token == mask else self.lm.tokenizer.decode([token], start=False)

    @property
    def _ours(self) -> bool:
        """Whether tokens are of a tokenizer of ours, which has a token for a place without a word."""
        return type(self.lm.tokenizer) is Tokenizer


def _cut(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop begins."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found, default=None)


def _begun(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end that may be the beginning of a stop."""
    longest = [(stop, min(len(stop) - 1, len(text))) for stop in stops]
    return max((k for stop, most in longest for k in range(1, most + 1) if text.endswith(stop[:k])), default=0)


class Telling:
    """Tells the texts of one request.

    Args:
        form: how.
        model: name of the model.
        lm: the model.
        asked: the request.
        began: when it came, by `time.perf_counter`.
        written: called with each finished text's event and its number of tokens.
    """

    def __init__(
        self, form: Form, model: str, lm: Any, asked: Asked, began: float, written: Callable[[Event, int], None]
    ) -> None:
        self.form, self.lm, self.asked, self.began, self.written = form, lm, asked, began, written
        self.head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.choices = [Choice(lm, asked, index) for index in range(len(asked.requests))]
        self.tokens, self.calls, self.most_calls = 0, 0, 0

    async def whole(self, writing: Writing) -> dict[str, Any]:
        """The answer, once all texts are written.

        Raises:
            MantaError: the model cannot serve one of them.
        """
        told: list[dict[str, Any]] = [{} for _ in self.choices]
        async with aclosing(writing.events()) as events:
            async for index, event in events:
                if event.error is not None:
                    raise event.error
                if event.kind == "done":
                    text, why = self._finish(index, event)
                    told[index] = self._choice(index, text, why) | {"manta": self._facts(index, event)}
        return {**self.head, "object": self.form.name, "choices": told, "usage": self.usage()}

    async def stream(self, writing: Writing, *, drafts: bool, usage: bool) -> AsyncGenerator[bytes]:
        """Server-sent events: what stands of each text, append-only; then usage; then `[DONE]`.

        A text that fails ends the stream with an `error`.

        Raises:
            MantaError: a text fails before anything was told.
        """
        begun = False
        async with aclosing(writing.events()) as events:
            async for index, event in events:
                if event.error is not None and not begun:
                    raise event.error
                if event.error is not None:
                    yield _event(refusal(status_of(event.error), str(event.error), "not_served"))
                    return
                for chunk in self._told(index, event, drafts):
                    begun = True
                    yield chunk
        if usage:
            yield self._chunk([], usage=self.usage())
        yield DONE

    def _told(self, index: int, event: Event, drafts: bool) -> Iterator[bytes]:
        """What a stream tells of an event."""
        choice = self.choices[index]
        if drafts:
            yield self._chunk([self._delta(index, "")], **choice.frame(event))
        if event.kind == "draft":
            if added := choice.more(event):
                yield self._chunk([self._delta(index, added)])
            return
        text, why = self._finish(index, event)
        yield self._chunk([self._delta(index, choice.rest(text), why) | {"manta": self._facts(index, event)}])

    def usage(self) -> dict[str, Any]:
        """Tokens, and what they took."""
        read = sum(map(self._read, self.asked.requests[:: self.asked.copies]))
        return {
            "prompt_tokens": read,
            "completion_tokens": self.tokens,
            "total_tokens": read + self.tokens,
            "network_calls": self.most_calls,
            "seconds": round(time.perf_counter() - self.began, 4),
        }

    def _read(self, request: Request) -> int:
        """Tokens that a model is given: its prompt, in a chat's frame, and a text to fill or change."""
        encode, prompt = self.lm.tokenizer.encode, request.prompt or ""
        if not prompt.strip():  # white space alone is no prompt
            given = []
        elif self.lm.frame is not None:
            given = self.lm.frame.encode(prompt, self.lm.tokenizer, request.history)
        else:
            given = encode(prompt)
        return len(given) + len(encode(re.sub(r"_{3,}(\{\d+\})?|\[\[|\]\]", "", request.infill or "")))

    def _finish(self, index: int, event: Event) -> tuple[str, str]:
        text, why, tokens = self.choices[index].ended(event)
        self.tokens += tokens
        self.most_calls = max(self.most_calls, event.nfe)
        self.written(event, tokens)
        return text, why

    def _facts(self, index: int, event: Event) -> dict[str, Any]:
        return {
            "seed": self.asked.requests[index].seed,
            "network_calls": event.nfe,
            "confidence": round(event.confidence, 4),
        }

    def _choice(self, index: int, text: str, why: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self.form.chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": why}

    def _delta(self, index: int, added: str, why: str | None = None) -> dict[str, Any]:
        role = {} if self.choices[index].begun else {"role": "assistant"}
        self.choices[index].begun = True
        said = {"delta": {**role, "content": added}} if self.form.chat else {"text": added}
        return {"index": index, **said, "logprobs": None, "finish_reason": why}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event({**self.head, "object": self.form.chunk, "choices": choices, **more})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
