"""Text on its way to a model: sources, tokenizer, corpus on disk, loader; consensus targets and figures."""

from manta.text.consensus import medoids
from manta.text.corpus import Corpus, CorpusReport, build
from manta.text.description import Description, describe
from manta.text.example import CONSENSUS, HUMAN, Example
from manta.text.foreign import ForeignTokenizer
from manta.text.hashing import part_of
from manta.text.loader import Batch, Loader, collate
from manta.text.shrinking import Shrunk, shrink
from manta.text.sources import fingerprint, read, task_of, tokenizer_for
from manta.text.tokenizers import BOS, EOS, MASK, NULL, SPECIALS, Tokenizer

__all__ = [
    "BOS",
    "CONSENSUS",
    "EOS",
    "HUMAN",
    "MASK",
    "NULL",
    "SPECIALS",
    "Batch",
    "Corpus",
    "CorpusReport",
    "Description",
    "Example",
    "ForeignTokenizer",
    "Loader",
    "Shrunk",
    "Tokenizer",
    "build",
    "collate",
    "describe",
    "fingerprint",
    "medoids",
    "part_of",
    "read",
    "shrink",
    "task_of",
    "tokenizer_for",
]
