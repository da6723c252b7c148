"""Masked diffusion: what a masked model is taught, and one decode loop with small policies."""

from manta.masked.decode import CacheConfig, Canvas, Judge, Policy, Reshaper, Scales, SpanDenoiser, decode
from manta.masked.decoders import DECODERS, DecoderConfig
from manta.masked.doubting import DoubtConfig
from manta.masked.extension import Extension, ExtensionConfig
from manta.masked.fluent import FluentSampler
from manta.masked.learned import LearnedConfig
from manta.masked.maskers import MASKERS, masker
from manta.masked.objective import (
    LikelihoodBound,
    MaskedObjectiveConfig,
    found_rates,
    likelihood_bound,
    masked_cross_entropy,
)
from manta.masked.policies import (
    BlockConfig,
    ConfidenceConfig,
    DeferredConfig,
    FirstHittingConfig,
    RemaskConfig,
    ThresholdConfig,
)
from manta.masked.rates import Rates
from manta.masked.sampling import CONFIDENCES, WordSampler
from manta.masked.structured import Held, StructuredSampler, completes

__all__ = [
    "CONFIDENCES",
    "DECODERS",
    "MASKERS",
    "BlockConfig",
    "CacheConfig",
    "Canvas",
    "ConfidenceConfig",
    "DecoderConfig",
    "DeferredConfig",
    "DoubtConfig",
    "Extension",
    "ExtensionConfig",
    "FirstHittingConfig",
    "FluentSampler",
    "Held",
    "Judge",
    "LearnedConfig",
    "LikelihoodBound",
    "MaskedObjectiveConfig",
    "Policy",
    "Rates",
    "RemaskConfig",
    "Reshaper",
    "Scales",
    "SpanDenoiser",
    "StructuredSampler",
    "ThresholdConfig",
    "WordSampler",
    "completes",
    "decode",
    "found_rates",
    "likelihood_bound",
    "masked_cross_entropy",
    "masker",
]
