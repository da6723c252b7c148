"""Which words go together: a model of n-grams, and the search for a text that it and a network agree on."""

from manta.fluency.ngrams import NgramModel, checked_words
from manta.fluency.search import Fluency, likeliest_row, likeliest_texts

__all__ = ["Fluency", "NgramModel", "checked_words", "likeliest_row", "likeliest_texts"]
