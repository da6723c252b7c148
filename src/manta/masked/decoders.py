"""Every decoder of masked models, by kind."""

from manta.masked.doubting import DoubtConfig
from manta.masked.learned import LearnedConfig
from manta.masked.policies import (
    BlockConfig,
    ConfidenceConfig,
    DeferredConfig,
    FirstHittingConfig,
    RemaskConfig,
    ThresholdConfig,
)

DecoderConfig = (
    DeferredConfig
    | ConfidenceConfig
    | ThresholdConfig
    | BlockConfig
    | RemaskConfig
    | FirstHittingConfig
    | DoubtConfig
    | LearnedConfig
)
"""Every decoder."""

DECODERS: dict[str, type] = {
    "deferred": DeferredConfig,
    "confidence": ConfidenceConfig,
    "threshold": ThresholdConfig,
    "block": BlockConfig,
    "remask": RemaskConfig,
    "first_hitting": FirstHittingConfig,
    "doubt": DoubtConfig,
    "learned": LearnedConfig,
}
"""Decoders by kind."""
