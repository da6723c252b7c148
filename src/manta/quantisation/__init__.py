"""Quantisation after training: what maps read is watched along trajectories, and each map of integers is fitted to it.

`observed` watches a net at work, `fitted` finds shifts, factors, steps and integers for every map, and `quantised` is
the net of integers. All take any net; what it makes is not known here.
"""

from manta.quantisation.fitting import Fitted, Quantising, fitted, quantised
from manta.quantisation.grouping import edges_between, merged_times
from manta.quantisation.observing import Observed, observed

__all__ = ["Fitted", "Observed", "Quantising", "edges_between", "fitted", "merged_times", "observed", "quantised"]
