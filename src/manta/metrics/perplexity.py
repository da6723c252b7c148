"""Generative perplexity: how likely a judge finds generated texts, never shown without their entropy and repetition.

A text that says one thing over and over is very likely under any judge. A perplexity alone therefore rewards collapse,
and published records have been won by it; beside the entropy and the repetition of the same texts it tells something.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import DataError, ModelError, RequestError, UsageError
from manta.metrics.bootstrap import Interval, bootstrap_ratio
from manta.metrics.diversity import Tokenize, repeated_share, token_entropy
from manta.metrics.measured import Measured, Sums


@runtime_checkable
class Judge(Protocol):
    """Any model that gives texts a likelihood; a function of this form is one."""

    def __call__(self, texts: list[str], /) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
        """Likelihood of each text, given nothing.

        The judge splits a text by its own tokenizer, in full precision, and judges all of it: it cuts nothing off; a
        text longer than its window it reads in several, or raises `RequestError`. Whether it gives the first token a
        probability (from a begin token) and whether it judges an end token is its own rule; what it gave none is not
        counted.

        Args:
            texts: at least one, none without a word.

        Returns:
            For each text −Σ ln p(token | tokens before it), in nats, and the number of tokens in that sum.
        """
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class JudgedQuality:
    """Generative perplexity with what has to stand beside it; made by `judge_quality`.

    Printing it, or asking for its `row`, raises a `UsageError` where entropy or repetition is missing.
    """

    perplexity: Interval
    """e^(nats a token), over the tokens of all texts together."""
    entropy: float | None
    """Mean entropy of the judged texts' tokens, nats (`token_entropy`)."""
    repetition: float | None
    """Share of repeated 4-grams of the judged texts, 0 … 1 (`repeated_share`)."""
    judge: str
    """Name of the judge."""
    texts: int
    """Texts given."""
    empty: int
    """Texts without a word; they are in none of the figures."""
    unjudged: int
    """Other texts of which the judge judged no token: a single word where the first has no probability, or a text that
    is too long for the judge."""
    tokens: int
    """Tokens judged."""
    max_words: int | None
    """Words after which a text was cut before anything was measured; None: nothing was cut."""
    cut: int
    """Texts that were."""
    nats: Float[Tensor, "n"] = field(compare=False)
    """Of each text given; 0 where no token of it was judged."""
    counts: Float[Tensor, "n"] = field(compare=False)
    """Tokens of it that were judged."""
    words: int
    """Words of the judged texts, separated by white space."""
    bytes: int
    """Bytes of the judged texts in UTF-8."""

    @property
    def a_word(self) -> float:
        """e^(nats a word): compares between judges, whose tokens differ."""
        return math.exp(float(self.nats.sum()) / self.words)

    @property
    def bits_a_byte(self) -> float:
        """Bits a byte: compares between judges and where no space stands between words."""
        return float(self.nats.sum()) / math.log(2) / self.bytes

    @property
    def measured(self) -> Measured:
        """The perplexity, for an interval over the same texts of several runs."""
        return Sums(torch.stack([self.nats, self.counts], -1), _perplexity)

    @property
    def nats_a_token(self) -> Float[Tensor, "n"]:
        """Of each text given; nan where no token of it was judged."""
        return self.nats / self.counts

    def row(self) -> dict[str, float | int | str | None]:
        """The figures by name, for a table or a file of results.

        Raises:
            UsageError: entropy or repetition is missing.
        """
        if self.entropy is None or self.repetition is None:
            raise UsageError(
                "a perplexity is not shown without the entropy and the repetition of the same texts, since a model "
                "that repeats itself gets a low one; measure them with judge_quality"
            )
        return {
            "perplexity": self.perplexity.value,
            "perplexity_low": self.perplexity.low,
            "perplexity_high": self.perplexity.high,
            "level": self.perplexity.level,
            "perplexity_per_word": self.a_word,
            "bits_per_byte": self.bits_a_byte,
            "entropy": self.entropy,
            "repeated_4": self.repetition,
            "judge": self.judge,
            "texts": self.texts,
            "empty": self.empty,
            "unjudged": self.unjudged,
            "tokens": self.tokens,
            "max_words": self.max_words,
            "cut": self.cut,
        }

    def __str__(self) -> str:
        row = self.row()
        whole = "whole texts" if self.max_words is None else f"first {self.max_words} words ({self.cut} texts cut)"
        return (
            f"perplexity {self.perplexity} a token, {self.a_word:.4g} a word, {self.bits_a_byte:.4g} bits a byte, "
            f"at entropy {row['entropy']:.3f} nats and {row['repeated_4']:.2%} repeated "
            f"4-grams; judge {self.judge}, {self.texts} texts ({self.empty} empty and {self.unjudged} unjudged left "
            f"out), {whole}, {self.tokens} tokens"
        )

    def __repr__(self) -> str:
        if self.entropy is None or self.repetition is None:  # a debugger should not raise, nor tell
            return f"JudgedQuality(perplexity withheld: no entropy or repetition, judge={self.judge!r})"
        return f"JudgedQuality({self})"


def judge_quality(
    texts: Sequence[str],
    judge: Judge,
    *,
    judge_name: str,
    generator: torch.Generator,
    tokenize: Tokenize = str.split,
    max_words: int | None = None,
    batch_size: int = 32,
    resamples: int = 10_000,
    level: float = 0.95,
) -> JudgedQuality:
    """Generative perplexity of texts under a judge, with the entropy and the repetition of the same texts.

        PPL = exp(Σ_texts nats / Σ_texts tokens)

    Texts without a word are left out of all figures and counted. The interval is a percentile bootstrap over texts; it
    holds neither another seed of training nor the choice of the judge. Perplexities compare only under one judge, at
    one length (`max_words`) and at about one entropy, and those of texts drawn with a cut (top-k, nucleus, a
    temperature below 1) only with each other. Not to be confused with a model's own perplexity on held-out text.

    Args:
        texts: generated texts, at least two of which hold judged tokens.
        judge: gives likelihoods; see `Judge`.
        judge_name: names it in what is printed.
        generator: draws the bootstrap.
        tokenize: tokens for entropy and repetition; published figures use the judge's own.
        max_words: keep this many words of each text, separated by white space, for the judge and for entropy and
            repetition alike; None keeps all. Nothing else is ever cut.
        batch_size: texts given to the judge at once.
        resamples: of the bootstrap.
        level: of the interval, in (0, 1).

    Returns:
        Perplexity, entropy and repetition.

    Raises:
        DataError: no texts, or fewer than two with judged tokens.
        ModelError: the judge's answer does not fit its texts, or is not finite.
        UsageError: max_words or batch_size below 1, too few resamples, or a level out of range.

    Source: Dieleman et al., "Continuous diffusion for categorical data" (2022), for the pair of likelihood and entropy;
    Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models" (ICLR 2025), for why.
    """
    if isinstance(texts, str) or not texts:
        raise DataError("a perplexity needs a list of texts; give at least two")
    if (max_words is not None and max_words < 1) or batch_size < 1:
        raise UsageError(f"max_words and batch_size should be at least 1, received {max_words} and {batch_size}")
    kept = [text if max_words is None else first_words(text, max_words) for text in texts]
    cut = sum(len(short.split()) < len(text.split()) for short, text in zip(kept, texts, strict=True))
    shown = [text for text in kept if text.split()]
    if not shown:
        raise DataError(f"none of {len(texts)} texts holds a word, so there is nothing to judge")
    answers = [_ask(judge, shown[at : at + batch_size]) for at in range(0, len(shown), batch_size)]
    nats, tokens = (torch.cat(part).double() for part in zip(*answers, strict=True))
    judged = tokens > 0
    of_all = torch.zeros(2, len(texts), dtype=torch.float64)
    of_all[:, [at for at, text in enumerate(kept) if text.split()]] = torch.stack([nats, tokens])
    if int(judged.sum()) < 2:
        raise DataError(f"the judge judged tokens of {int(judged.sum())} of {len(shown)} texts; an interval needs two")
    known = [text for text, there in zip(shown, judged.tolist(), strict=True) if there]
    rate = bootstrap_ratio(nats[judged], tokens[judged], generator=generator, resamples=resamples, level=level)
    return JudgedQuality(
        perplexity=Interval(math.exp(rate.value), math.exp(rate.low), math.exp(rate.high), level),
        entropy=token_entropy(shown, tokenize),
        repetition=repeated_share(shown, 4, tokenize),
        judge=judge_name,
        texts=len(texts),
        empty=len(texts) - len(shown),
        unjudged=len(shown) - int(judged.sum()),
        tokens=int(tokens.sum()),
        max_words=max_words,
        cut=cut,
        nats=of_all[0],
        counts=of_all[1],
        words=sum(len(text.split()) for text in known),
        bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in known),
    )


def _perplexity(sums: Tensor) -> Tensor:
    return (sums[..., 0] / sums[..., 1]).exp()


def first_words(text: str, count: int) -> str:
    """The text up to the end of its word number `count`, its white space as it was."""
    for number, word in enumerate(re.finditer(r"\S+", text), 1):
        if number == count:
            return text[: word.end()]
    return text


def _ask(judge: Judge, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The judge's answers; nothing for a text that it cannot read, which stops none of the others."""
    try:
        nats, tokens = judge(texts)
    except RequestError:
        if len(texts) == 1:
            return torch.zeros(1), torch.zeros(1)
        nats, tokens = (torch.cat(part) for part in zip(*(_ask(judge, [text]) for text in texts), strict=True))
    if len(nats) != len(texts) or len(tokens) != len(texts):
        raise ModelError(f"the judge answered {len(nats)} and {len(tokens)} figures for {len(texts)} texts; one each")
    if not bool(nats.isfinite().all()) or bool((nats < 0).any()) or bool((tokens < 0).any()):
        raise ModelError("the judge gave a text a likelihood that is not finite or above 1, or a negative count")
    if bool((nats[tokens == 0] != 0).any()):
        raise ModelError("the judge gave nats to a text of which it counts no token")
    return nats.cpu(), tokens.cpu()
