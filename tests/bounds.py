"""How far a counted frequency may lie from its probability."""

import math


def binomial_bounds(trials: int, chance: float, doubt: float = 1e-6) -> tuple[int, int]:
    """The counts between which a binomial variable lies but for `doubt` on either side, exactly."""
    terms = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    low, high, below, above = 0, trials, terms[0], terms[-1]
    while below < doubt:
        low += 1
        below += terms[low]
    while above < doubt:
        high -= 1
        above += terms[high]
    return low, high
