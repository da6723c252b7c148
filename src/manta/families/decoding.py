"""How masked models, ours and published ones, commit words: from a request's options to a canvas that is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.families.asked import listed
from manta.families.events import UNFINISHED, Event, EventKind, GenerateOptions
from manta.families.options import spelled
from manta.fluency import Fluency
from manta.masked import (
    DECODERS,
    CacheConfig,
    Canvas,
    ConfidenceConfig,
    DecoderConfig,
    DeferredConfig,
    FluentSampler,
    Held,
    Judge,
    RemaskConfig,
    Reshaper,
    Scales,
    SpanDenoiser,
    StructuredSampler,
    WordSampler,
    decode,
)

DRAWN: Final = ("remask", "first_hitting")
"""Decoders that draw the places they commit, however sure the model is of them."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A masked model's own decoder, as stored."""

    decoder: DecoderConfig = field(default_factory=DeferredConfig)
    """Any decoder, by kind."""


def check_decoder(options: GenerateOptions, decoder: DecoderConfig, doubts: bool) -> None:
    """Refuse settings that a masked model's decoder does not have or does not look at.

    Args:
        options: of the request.
        decoder: which is to write.
        doubts: whether the model has a head that doubts its words.

    Raises:
        UsageError: naming the setting and the decoders that have it.
    """
    kind = decoder.kind
    if kind == "doubt" and not doubts:
        raise UsageError(
            "the doubt decoder takes back what the model itself holds wrong, and this one has no head for it; train a "
            "masked model with `masked.thinking.doubts=true`, or choose another decoder"
        )
    for name in ("threshold", "block_length", "window_masked", "window_width", "rounds"):
        if getattr(options, name) is not None and not hasattr(decoder, name):
            others = [other for other, config in DECODERS.items() if any(f.name == name for f in fields(config))]
            raise UsageError(f"the {kind} decoder has no setting {name}; it is for {listed(others)}; leave it out")
    if options.threshold is not None and getattr(decoder, "factor", None) is not None:
        raise UsageError(f"the model's {kind} decoder goes by a factor, not by a threshold; leave threshold out")
    if options.confidence != "probability" and (kind in DRAWN or getattr(decoder, "order", "") == "random"):
        others = [other for other in DECODERS if other not in DRAWN]
        raise UsageError(
            f"the {kind} decoder draws its places, whatever the confidence; {spelled('confidence')} is for "
            f"{listed(others)}; leave it out"
        )
    if options.ends_last and options.temperature > 0 and decoder.build().exact:
        raise UsageError(
            f"the {kind} decoder draws its places, and words at a temperature: to it an end is a word like any other; "
            f"leave {spelled('ends_last')} out"
        )
    if options.cache != "none" and not looks_at_parts(decoder) and options.block_length is None:
        raise UsageError(
            f"the {kind} decoder looks at the whole text in every call, so that a cache saves nothing; set "
            "`block_length`, choose the decoder deferred or block, or leave `cache` out"
        )


def looks_at_parts(decoder: DecoderConfig) -> bool:
    """Whether a decoder looks at a part of the text in a call, so that a cache saves computing the rest."""
    return decoder.kind == "deferred" or getattr(decoder, "block_length", None) is not None


def chosen_decoder(options: GenerateOptions, own: DecoderConfig | None = None, doubts: bool = False) -> DecoderConfig:
    """The decoder of a request: its options', else the model's own, else deferred commitment.

    Args:
        options: of the request.
        own: the model's, if it has one.
        doubts: whether the model has a head that doubts its words.

    Raises:
        UsageError: for a setting that the decoder does not have, or a decoder that the model cannot follow.
    """
    given = {
        name: value
        for name in ("threshold", "block_length", "window_masked", "window_width", "rounds")
        if (value := getattr(options, name)) is not None
    }
    if options.decoder == "learned":
        if own is None or own.kind != "learned":
            raise UsageError("the model has learned no schedule; teach it one with `manta schedule`, or choose another")
        base = own
    else:
        base = DECODERS[options.decoder]() if options.decoder else (own or DECODERS["deferred"]())
    check_decoder(options, base, doubts)
    return replace(base, **given)


def write_canvas(
    denoiser: SpanDenoiser,
    tokens: Int64[Tensor, "b n"],
    decoder: DecoderConfig,
    options: GenerateOptions,
    *,
    mask_id: int,
    generators: Sequence[torch.Generator],
    width: int,
    end_id: int | None,
    ends_last: bool,
    max_calls: int,
    held: Sequence[Held] = (),
    mask: Bool[Tensor, "b n"] | None = None,
    judge: Judge | None = None,
    elastic: Reshaper | None = None,
    scales: Scales | None = None,
    fluency: Fluency | None = None,
) -> Iterator[Canvas]:
    """Write a batch of canvases as the options of a request say; see `manta.masked.decode` for the arguments.

    Args:
        denoiser: logits of a span.
        tokens: the canvases, the mask token where words go.
        decoder: what to commit; those that ask for a number of calls get `max_calls`.
        options: temperature, confidence and cache.
        mask_id, end_id: the tokens that mean something.
        ends_last: commit ends only when nothing else is left; not for samplers that draw their places, and words at a
            temperature: to them an end is a word like any other, as likely as the model says.
        generators: one a row.
        width: positions of the largest canvas, whatever the batch.
        max_calls: budget of network calls.
        held: what holds each row to a pattern; none for free ones.
        mask: True on each row's canvas, for rows that are held or fluent.
        judge: of a model that doubts its words.
        elastic: lays canvases out anew after each call.
        scales: settles classes before words.
        fluency: what is added for words that go together, where no row is held.
    """
    if isinstance(decoder, ConfidenceConfig | RemaskConfig):
        decoder = replace(decoder, num_steps=max_calls)
    policy = decoder.build()
    how: dict[str, Any] = {"temperature": options.temperature, "generators": generators, "width": width}
    how["confidence"] = options.confidence
    if held:
        assert mask is not None, "a canvas that is held has an end"
        sampler = StructuredSampler(held, mask, mask_id, **how)
    elif fluency is not None:
        assert mask is not None and end_id is not None, "a canvas that is searched has an end"
        sampler = FluentSampler(fluency, mask, mask_id, end_id, **how)
    else:
        sampler = WordSampler(**how)
    return decode(
        denoiser,
        tokens,
        policy,
        mask_id=mask_id,
        sampler=sampler,
        cache=CacheConfig(kind=options.cache, refresh=options.refresh),
        end_id=end_id,
        ends_last=ends_last and not (policy.exact and options.temperature > 0),
        max_calls=max_calls,
        judge=judge,
        elastic=elastic,
        scales=scales,
    )


def keeps_words(decoder: DecoderConfig) -> bool:
    """Whether a decoder never takes a word back."""
    return decoder.kind != "remask" and not getattr(decoder, "rounds", 0)


def canvas_events(
    canvas: Canvas,
    mask: Bool[Tensor, "b n"],
    texts: Sequence[Callable[[list[int]], str]],
    encode: int,
    kind: EventKind,
    *,
    whole: Callable[[list[int]], int] | None = None,
) -> list[Event]:
    """What has become of each row; its time is the share of its canvas that is written.

    Args:
        canvas: as it stands.
        mask: True on each row's canvas.
        texts: for each row what makes a text of its tokens, those without a word among them.
        encode: network calls made before the canvas's.
        kind: of the events.
        whole: where the words before the first place without one stay as they are (free texts, of a decoder that
            `keeps_words`): `Tokenizer.whole`.
    """
    events, processed = [], canvas.processed // len(mask)
    for row in range(len(mask)):
        words, open_ = canvas.tokens[row][mask[row]].tolist(), canvas.masked[row][mask[row]]
        chances = canvas.confidence[row][mask[row]].clamp(0, 1).masked_fill(open_, 0.0)
        said = canvas.confidence[row][mask[row] & ~canvas.masked[row]].clamp(max=1)  # a given word is certain
        sure = said.mean().item() if len(said) else 0.0
        share = 1 - canvas.masked[row].sum().item() / max(1, int(mask[row].sum()))
        calls = int(canvas.calls_of[row]) + encode
        text = texts[row](words)
        standing = 0
        if whole is not None and kind == "draft":
            ahead = words[: int((~open_).long().cumprod(0).sum())]
            standing = len(texts[row](ahead[: whole(ahead)]).rstrip(UNFINISHED))
        told: dict[str, Any] = {"chances": tuple(chances.tolist()), "standing": standing}
        events.append(Event(kind, row, text, tuple(words), share, sure, calls, processed, **told))
    return events


def batches(filled: Sequence[bool], size: int) -> Iterator[list[int]]:
    """Which requests are written together: texts to fill apart from free ones, as their ends are settled otherwise.

    Args:
        filled: True for a text to fill.
        size: most requests of a batch.
    """
    for kind in (False, True):
        alike = [index for index, fill in enumerate(filled) if fill == kind]
        for begin in range(0, len(alike), size):
            yield alike[begin : begin + size]
