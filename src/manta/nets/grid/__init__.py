"""Nets over a grid of elements, such as an image: what a table of kinds says of state, time, class and code."""

from manta.nets.grid.dic import DicConfig, DicNet
from manta.nets.grid.dit import DitConfig, DitNet
from manta.nets.grid.told import Conditioning, Told
from manta.nets.grid.udit import UditConfig, UditNet

GRID_NETS = {"dic": DicConfig, "dit": DitConfig, "udit": UditConfig}
"""From a kind of net to its configuration, which builds it."""
GridNetChoice = DicConfig | DitConfig | UditConfig

__all__ = [
    "GRID_NETS",
    "Conditioning",
    "DicConfig",
    "DicNet",
    "DitConfig",
    "DitNet",
    "GridNetChoice",
    "Told",
    "UditConfig",
    "UditNet",
]
