"""Measures of generated texts: overlap with references, slot errors, diversity, judged quality, signs of collapse."""

from manta.metrics.bootstrap import (
    Correlation,
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    spearman,
    wilson,
)
from manta.metrics.copying import Copying, copying
from manta.metrics.diversity import (
    Tokenize,
    distinct_n,
    distinct_share,
    diversity,
    length_statistics,
    repeated_share,
    token_entropy,
)
from manta.metrics.guards import CorpusFigures, Finding, GuardConfig, corpus_figures, find_collapse
from manta.metrics.mauve import Mauve, MauveConfig, frontier_area, mauve
from manta.metrics.overlap import bleu, chrf, rouge
from manta.metrics.perplexity import Judge, JudgedQuality, judge_quality
from manta.metrics.slots import SlotReport, slot_error_rate, slot_errors
from manta.metrics.target_entropy import Met, Tried, meet_entropy

__all__ = [
    "Copying",
    "CorpusFigures",
    "Correlation",
    "Finding",
    "GuardConfig",
    "Interval",
    "Judge",
    "JudgedQuality",
    "Mauve",
    "MauveConfig",
    "Met",
    "SlotReport",
    "Tokenize",
    "Tried",
    "bleu",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_ratio",
    "chrf",
    "copying",
    "corpus_figures",
    "distinct_n",
    "distinct_share",
    "diversity",
    "find_collapse",
    "frontier_area",
    "judge_quality",
    "length_statistics",
    "mauve",
    "meet_entropy",
    "repeated_share",
    "rouge",
    "slot_error_rate",
    "slot_errors",
    "spearman",
    "token_entropy",
    "wilson",
]
