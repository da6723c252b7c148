"""Texts and tokens a second, against batch and length, for every family and decoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from manta.bench.timing import Row, interleaved
from manta.errors import UsageError
from manta.families.asked import accepts, applicable, follows
from manta.families.decoding import looks_at_parts
from manta.families.events import GenerateOptions, Request, Writer, finished
from manta.families.options import CacheKind
from manta.hub import ForeignModel, LanguageModel
from manta.masked import DECODERS

DRAFTED = ("aligned", "sequential", "verified")
"""Decoders of models that write left to right, the last two with the same text, and through alignments."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is asked to write."""

    decoder: str = ""
    """Of masked models and those that write left to right; empty: the model's own."""
    cache: CacheKind = "none"
    """Of masked models; all others than `none` serve one text at a time."""


def settings_of(lm: Writer, decoders: Sequence[str] = (), caches: Sequence[CacheKind] = ("none",)) -> list[Setting]:
    """What is compared for a model: every decoder with every cache of a masked model, writing with and without drafts
    left to right, and through alignments where a model does both, one setting of any other.

    A decoder that looks at the whole text in every call has nothing to keep, and is compared without a cache.

    Args:
        lm: the model.
        decoders: names of decoders; none takes all.
        caches: kinds of caches.

    Raises:
        UsageError: for an unknown decoder, or one, or a cache, of a model that has none.
    """
    for name in decoders:
        if name not in (*DECODERS, *DRAFTED):
            raise UsageError(f"unknown decoder {name!r}; choose among {', '.join((*DECODERS, *DRAFTED))}")
    if not follows(lm.family, "cache"):
        drafts = getattr(lm, "drafter", None) is not None
        chosen = DRAFTED if follows(lm.family, "decoder") else ()
        follow = [name for name in chosen if accepts(lm.family, "decoder", name)]
        known = tuple(name for name in follow if drafts or name == "aligned")
        if set(decoders) - set(known) or any(cache != "none" for cache in caches):
            raise UsageError(
                "caches and decoders are of masked models, sequential and verified of those with a drafter that write "
                f"left to right, aligned of aligned ones; leave them out for this one of the family {lm.family}"
            )
        return [Setting(decoder=name) for name in decoders or known] or [Setting()]
    if wrong := sorted(set(decoders) - set(DECODERS)):
        raise UsageError(f"the decoder {wrong[0]} is for models that write left to right; leave it out")
    return [
        Setting(decoder=name, cache=cache)
        for name in decoders or DECODERS
        for cache in caches
        if cache == "none" or looks_at_parts(DECODERS[name]())
    ]


def writing_rates(
    lm: LanguageModel | ForeignModel,
    lengths: Sequence[int],
    batches: Sequence[int],
    settings: Sequence[Setting],
    *,
    num_steps: int = 8,
    prompt: str | None = None,
    repeats: int = 3,
) -> Iterator[Row]:
    """Measure a model at every length, batch and setting; the settings take turns.

    Every text is given the length that is asked for: a canvas of so many tokens, or so many tokens left to right. Only
    a masked decoder that commits an early end stops before, and an aligned model fills its canvas in one call; `calls`
    show it.

    Args:
        lm: any family.
        lengths: tokens of a text.
        batches: texts written at once.
        settings: see `settings_of`.
        num_steps: budget of network calls of everything that is not left to right.
        prompt: of every text.
        repeats: rounds of `interleaved`; medians count, `spread` is the range of the seconds over their median.

    Yields:
        A row for each length, batch and setting.

    Raises:
        UsageError: a length is more than the model writes, or none can be asked of it.
    """
    if not (follows(lm.family, "max_tokens") or lm.fills):
        raise UsageError(
            f"a model of the family {lm.family} neither bounds a text nor fills a blank, so that no length can be "
            "asked of it; leave writing out of the parts"
        )
    if max(lengths) > lm.capacity:
        raise UsageError(f"the model writes at most {lm.capacity} tokens, received a length of {max(lengths)}")
    for length in lengths:
        for batch in batches:
            fitting = [setting for setting in settings if batch == 1 or setting.cache == "none"]
            done: dict[str, list[int]] = {str(index): [] for index in range(len(fitting))}
            with lm.endless() as writer:
                work = {
                    name: _Work(writer, length, batch, fitting[int(name)], num_steps, prompt, done[name])
                    for name in done
                }
                times = interleaved(work, repeats)
            for name, setting in zip(done, fitting, strict=True):
                seconds, calls = median(times[name]), done[name]
                row: Row = {"family": lm.family, "decoder": setting.decoder, "cache": setting.cache}
                row |= {"length": length, "batch": batch, "calls": sum(calls) / len(calls), "seconds": seconds}
                row |= {"texts_per_second": batch / seconds, "tokens_per_second": batch * length / seconds}
                yield {**row, "spread": (max(times[name]) - min(times[name])) / seconds}


@dataclass
class _Work:
    """One batch of texts; the calls of each are noted."""

    lm: Writer
    length: int
    batch: int
    setting: Setting
    num_steps: int
    prompt: str | None
    calls: list[int]

    def __call__(self) -> None:
        aligned = self.lm.family == "aligned" and self.setting.decoder in ("", "aligned")
        own_length = follows(self.lm.family, "max_tokens") and not aligned
        infill = None if own_length else f"___{{{self.length}}}"
        requests = [Request(prompt=self.prompt, infill=infill, seed=seed) for seed in range(self.batch)]
        given: dict[str, Any] = {"decoder": self.setting.decoder, "cache": self.setting.cache}
        most = self.length if own_length else None
        if self.setting.decoder not in ("sequential", "verified"):
            given["num_steps"] = self.num_steps
        options, _ = applicable(GenerateOptions(max_tokens=most, **given), self.lm.family)
        self.calls += [event.nfe for event in finished(self.lm.generate(requests, options, batch_size=self.batch))]
