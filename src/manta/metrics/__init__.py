"""Measures of generated texts: overlap with references, slot errors, diversity, judged quality, signs of collapse."""

from manta.metrics.bootstrap import (
    Correlation,
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    jackknife,
    spearman,
    wilson,
)
from manta.metrics.copying import Copying, copying
from manta.metrics.diversity import (
    Tokenize,
    distinct_n,
    distinct_share,
    diversity,
    diversity_measured,
    length_statistics,
    repeated_share,
    token_entropy,
)
from manta.metrics.guards import CorpusFigures, Finding, GuardConfig, corpus_figures, find_collapse
from manta.metrics.mauve import Mauve, MauveConfig, frontier_area, mauve
from manta.metrics.measured import LeftOut, Measured, Share, Sums, difference_of, interval_of, resampled, value_of
from manta.metrics.overlap import ONE_FEWER, OverlapSums, bleu, chrf, rouge
from manta.metrics.perplexity import Judge, JudgedQuality, judge_quality
from manta.metrics.slots import SlotReport, slot_error_rate, slot_errors, slot_errors_measured
from manta.metrics.target_entropy import Met, Tried, meet_entropy
from manta.metrics.words import Words, normal, split_words, words_of

__all__ = [
    "ONE_FEWER",
    "Copying",
    "CorpusFigures",
    "Correlation",
    "Finding",
    "GuardConfig",
    "Interval",
    "Judge",
    "JudgedQuality",
    "LeftOut",
    "Mauve",
    "MauveConfig",
    "Measured",
    "Met",
    "OverlapSums",
    "Share",
    "SlotReport",
    "Sums",
    "Tokenize",
    "Tried",
    "Words",
    "bleu",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_ratio",
    "chrf",
    "copying",
    "corpus_figures",
    "difference_of",
    "distinct_n",
    "distinct_share",
    "diversity",
    "diversity_measured",
    "find_collapse",
    "frontier_area",
    "interval_of",
    "jackknife",
    "judge_quality",
    "length_statistics",
    "mauve",
    "meet_entropy",
    "normal",
    "repeated_share",
    "resampled",
    "rouge",
    "slot_error_rate",
    "slot_errors",
    "slot_errors_measured",
    "spearman",
    "split_words",
    "token_entropy",
    "value_of",
    "wilson",
    "words_of",
]
