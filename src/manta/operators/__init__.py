"""How distant parts of a state act on each other: one file an operator, each equal to a slow reference."""

from manta.operators.attention import AttentionConfig, SelfAttention
from manta.operators.combined import AttentionFourier, AttentionFourierConfig
from manta.operators.context import Cache, Operator, OperatorConfig, OperatorContext, line
from manta.operators.cross_attention import CrossAttention, ProjectedMemory
from manta.operators.dijiang import DijiangAttention, DijiangConfig
from manta.operators.fourier import FourierConfig, SpectralConvolution
from manta.operators.linear import KernelAttention, LinearAttention, LinearConfig
from manta.operators.windowed import WindowedAttention, WindowedConfig

KINDS = {
    "attention": AttentionConfig,
    "fourier": FourierConfig,
    "attention_fourier": AttentionFourierConfig,
    "windowed": WindowedConfig,
    "linear": LinearConfig,
    "dijiang": DijiangConfig,
}

__all__ = [
    "KINDS",
    "AttentionConfig",
    "AttentionFourier",
    "AttentionFourierConfig",
    "Cache",
    "CrossAttention",
    "DijiangAttention",
    "DijiangConfig",
    "FourierConfig",
    "KernelAttention",
    "LinearAttention",
    "LinearConfig",
    "Operator",
    "OperatorConfig",
    "OperatorContext",
    "ProjectedMemory",
    "SelfAttention",
    "SpectralConvolution",
    "WindowedAttention",
    "WindowedConfig",
    "line",
]
