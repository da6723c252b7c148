"""Text on its way to a model: sources, tokenizer, corpus on disk, loader; consensus targets and figures."""

from manta.data.consensus import medoids
from manta.data.corpus import Corpus, CorpusReport, build
from manta.data.description import Description, describe
from manta.data.example import CONSENSUS, HUMAN, Example
from manta.data.hashing import part_of
from manta.data.loader import Batch, Loader, collate
from manta.data.sources import fingerprint, read, task_of, tokenizer_for
from manta.data.tokenizers import BOS, EOS, MASK, NULL, SPECIALS, Tokenizer

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
    "Loader",
    "Tokenizer",
    "build",
    "collate",
    "describe",
    "fingerprint",
    "medoids",
    "part_of",
    "read",
    "task_of",
    "tokenizer_for",
]
