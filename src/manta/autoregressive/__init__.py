"""Left to right: how the next word is chosen, who drafts the words after it, and the loop that checks drafts."""

from manta.autoregressive.chooser import Chooser, ChooserOfEach, truncate
from manta.autoregressive.decode import Drafter, Drafting, Reader, Round, Told, Watch, decode
from manta.autoregressive.ngram import NgramDrafter, checked_ngrams, count_ngrams

__all__ = [
    "Chooser",
    "ChooserOfEach",
    "Drafter",
    "Drafting",
    "NgramDrafter",
    "Reader",
    "Round",
    "Told",
    "Watch",
    "checked_ngrams",
    "count_ngrams",
    "decode",
    "truncate",
]
