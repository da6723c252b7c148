"""Families that tell many words in one call, and keep counts of the training texts that say which go together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, cast

from torch import Tensor

from manta.errors import UsageError
from manta.families.events import GenerateOptions
from manta.families.options import spelled
from manta.families.trained import Net, TrainedWriter
from manta.fluency import Edges, Fluency, NgramModel, checked_words
from manta.text import BOS, EOS, Corpus, Tokenizer

FLUENCY = 0.5
"""Weight of the n-grams where nothing else is asked for."""
ENOUGH = 100_000
"""Tokens that must have been counted for the counts to be weighed unasked: those of few texts know too little."""
MOST_COUNTED = 5_000_000
"""Tokens that are counted at most, of rows evenly spaced in a larger corpus, which bounds the memory that it takes."""
NGRAMS = "ngrams."
"""Before the names of the table of n-grams among the parts of a folder."""


class FluentWriter(TrainedWriter[Net], Generic[Net]):
    """A model that tells many words in one call."""

    ngrams: NgramModel | None = None
    """Of its training texts; None: none were counted."""

    def learn_from(self, corpus: Corpus, teacher: TrainedWriter[Any] | None = None) -> None:
        """Count the texts."""
        rows = range(0, len(corpus), max(1, -(-corpus.text_tokens // MOST_COUNTED)))
        self._count((corpus.text(row).tolist() for row in rows), map(corpus.edges, rows))

    def _count(self, texts: Iterable[Sequence[int]], edges: Edges | None = None) -> None:
        size = self.model.config.vocab_size
        self.ngrams = NgramModel.count(texts, vocab_size=size, begin=BOS, end=EOS, edges=edges)

    def with_vocabulary(
        self, tokenizer: Tokenizer, smaller: Callable[[Any], Any], rows: Iterable[Sequence[int]]
    ) -> "FluentWriter[Net]":
        """With texts counted anew."""
        found = cast(FluentWriter[Net], super().with_vocabulary(tokenizer, smaller, rows))
        if self.ngrams is not None:
            found._count(rows)
        return found

    def parts(self) -> dict[str, Tensor]:
        """The counts."""
        return {} if self.ngrams is None else {NGRAMS + name: value for name, value in self.ngrams.table.items()}

    def fluency(self, options: GenerateOptions) -> Fluency | None:
        """What the counts say beside the net: as asked, or by themselves where that was measured to be better."""
        if self.ngrams is None:
            return None
        weight = options.fluency
        if weight is None:
            weight = FLUENCY if self._unasked(options) and self.ngrams.tokens >= ENOUGH else 0.0
        return Fluency(self.ngrams, weight) if weight else None

    def _unasked(self, options: GenerateOptions) -> bool:
        """Whether they are weighed where no weight is asked for."""
        return options.temperature == 0 and options.style == "consensus"

    def without_fluency(self) -> str | None:
        """Why this model weighs no counts, whatever else is asked; None where it may."""
        return "the model holds no counts of its training texts" if self.ngrams is None else None

    def check_fluency(self, options: GenerateOptions) -> None:
        """Refuse a weight that nothing would come of.

        Raises:
            UsageError: as said.
        """
        if options.fluency and self.ngrams is None:
            raise UsageError(
                f"this model holds no counts of its training texts, which {spelled('fluency')} weighs; leave it out, "
                "or train the model on with manta train --from"
            )


def counted(parts: Mapping[str, Tensor], vocab_size: int) -> NgramModel | None:
    """The counts that a folder holds, if it holds any.

    Args:
        parts: contents of its `parts.safetensors`.
        vocab_size: tokens of the vocabulary.

    Raises:
        ConfigError: they are not such counts.
    """
    table = {name.removeprefix(NGRAMS): value for name, value in parts.items() if name.startswith(NGRAMS)}
    return NgramModel(checked_words(table, vocab_size), vocab_size, BOS, EOS) if table else None
