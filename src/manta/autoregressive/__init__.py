"""Left to right: how the next word is chosen, who drafts the words after it, and the loop that checks drafts."""

from manta.autoregressive.chooser import Chooser, ChooserOfEach, Later, truncate
from manta.autoregressive.decode import Drafter, Drafting, Reader, Round, Told, Watch, decode
from manta.autoregressive.ngram import NgramDrafter, checked_ngrams, count_ngrams
from manta.autoregressive.rolling import Behind, after, write_on

__all__ = [
    "Behind",
    "Chooser",
    "ChooserOfEach",
    "Drafter",
    "Drafting",
    "Later",
    "NgramDrafter",
    "Reader",
    "Round",
    "Told",
    "Watch",
    "after",
    "checked_ngrams",
    "count_ngrams",
    "decode",
    "truncate",
    "write_on",
]
