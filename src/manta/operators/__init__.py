"""How distant parts of a state act on each other: one file an operator, each equal to a slow reference."""

from manta.operators.attention import AttentionConfig, SelfAttention
from manta.operators.combined import AttentionFourier, AttentionFourierConfig
from manta.operators.context import Cache, Operator, OperatorConfig, OperatorContext, lattice, line
from manta.operators.conversion import inherit_attention, near_share
from manta.operators.cross_attention import CrossAttention, ProjectedMemory
from manta.operators.dijiang import DijiangAttention, DijiangConfig
from manta.operators.downsampled import DownsampledAttention, DownsampledConfig
from manta.operators.fourier import FourierConfig, SpectralConvolution
from manta.operators.linear import KernelAttention, LinearAttention, LinearConfig
from manta.operators.pyramid import PyramidConfig, PyramidConvolution
from manta.operators.pyramid_grid import PyramidGrid
from manta.operators.windowed import WindowedAttention, WindowedConfig

KINDS = {
    "attention": AttentionConfig,
    "fourier": FourierConfig,
    "attention_fourier": AttentionFourierConfig,
    "windowed": WindowedConfig,
    "linear": LinearConfig,
    "dijiang": DijiangConfig,
    "pyramid_conv": PyramidConfig,
    "downsampled": DownsampledConfig,
}
OperatorChoice = (
    AttentionConfig
    | FourierConfig
    | AttentionFourierConfig
    | WindowedConfig
    | LinearConfig
    | DijiangConfig
    | PyramidConfig
    | DownsampledConfig
)
CAUSAL = tuple(kind for kind in KINDS if kind != "pyramid_conv")
"""Kinds that can be causal, and so serve a left-to-right model."""

__all__ = [
    "CAUSAL",
    "KINDS",
    "AttentionConfig",
    "AttentionFourier",
    "AttentionFourierConfig",
    "Cache",
    "CrossAttention",
    "DijiangAttention",
    "DijiangConfig",
    "DownsampledAttention",
    "DownsampledConfig",
    "FourierConfig",
    "KernelAttention",
    "LinearAttention",
    "LinearConfig",
    "Operator",
    "OperatorChoice",
    "OperatorConfig",
    "OperatorContext",
    "ProjectedMemory",
    "PyramidConfig",
    "PyramidConvolution",
    "PyramidGrid",
    "SelfAttention",
    "SpectralConvolution",
    "WindowedAttention",
    "WindowedConfig",
    "inherit_attention",
    "lattice",
    "line",
    "near_share",
]
