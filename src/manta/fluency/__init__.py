"""Which words go together: a model of n-grams; the search for a text that it and a network agree on, and draws."""

from manta.fluency.drawing import drawn_row
from manta.fluency.ngrams import Edges, NgramModel, checked_words
from manta.fluency.search import Fluency, likeliest_row, likeliest_texts

__all__ = ["Edges", "Fluency", "NgramModel", "checked_words", "drawn_row", "likeliest_row", "likeliest_texts"]
