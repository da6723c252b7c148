"""From what a model has written to what a client reads: OpenAI's objects, whole or as a stream."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from manta.families.events import UNFINISHED, Event
from manta.server.asking import Asked
from manta.server.engine import Writing
from manta.server.guard import refusal
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

    def ended(self, event: Event) -> tuple[str, str, int]:
        """`(text, why it ends, its tokens)` of a finished text."""
        text, why = event.text, "stop"
        ids = self.lm.tokenizer.encode(text)
        most, wanted = self.asked.most, self.asked.wanted
        if most is not None and len(ids) > most:
            text, why = self.lm.tokenizer.decode(ids[:most]).rstrip(UNFINISHED), "length"
        elif wanted is not None and len(ids) >= wanted:
            why = "length"
        cut = _cut(text, self.asked.stops)
        if cut is not None:
            text, why = text[:cut], "stop"
        return self.asked.before[self.index] + text, why, min(len(ids), most or len(ids))

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
        words = [
            [self._said(token), round(chance, 4)]
            for token, chance in zip(event.tokens, event.chances or [event.confidence] * len(event.tokens), strict=True)
            if not (token == NULL and self._ours)
        ]
        return {
            "type": "diffusion_frame",
            "index": self.index,
            "step": event.nfe,
            "total": getattr(self.asked.requests[self.index].options, "num_steps", None),
            "text": event.text,
            "t": round(event.t, 4),
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
        return isinstance(self.lm.tokenizer, Tokenizer)


def _cut(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop begins."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found, default=None)


def _begun(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end that may be the beginning of a stop."""
    return max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)


class Telling:
    """Tells the texts of one request.

    Args:
        form: how.
        model: name of the model.
        lm: the model.
        asked: the request.
        written: called with each finished text's event and its number of tokens.
    """

    def __init__(
        self, form: Form, model: str, lm: Any, asked: Asked, written: Callable[[Event, int], None] = lambda *_: None
    ) -> None:
        self.form, self.lm, self.asked, self.written = form, lm, asked, written
        self.began = time.perf_counter()
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
                    yield _event(refusal(400, str(event.error), "not_served"))
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
        given = {id(r.prompt): [r.prompt, *(text for _, text in r.history)] for r in self.asked.requests}
        read = sum(len(self.lm.tokenizer.encode(text)) for texts in given.values() for text in texts if text)
        return {
            "prompt_tokens": read,
            "completion_tokens": self.tokens,
            "total_tokens": read + self.tokens,
            "network_calls": self.most_calls,
            "seconds": round(time.perf_counter() - self.began, 4),
        }

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
        said = {"delta": {"role": "assistant", "content": added}} if self.form.chat else {"text": added}
        return {"index": index, **said, "logprobs": None, "finish_reason": why}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event({**self.head, "object": self.form.chunk, "choices": choices, **more})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
