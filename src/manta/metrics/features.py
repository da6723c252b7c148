"""How near two sets of images, or of anything with features, are to each other."""

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError

NEIGHBOURS = 3
"""Neighbours that make the reach of a point in `precision_recall`."""
LEAST = 50
"""Points of a set without which nothing is said of it."""
_ROWS = 1024
"""Rows of a table of distances that are held at once."""


def frechet_distance(ours: Float[Tensor, "n d"], theirs: Float[Tensor, "m d"]) -> float:
    """Fréchet distance between the Gaussians of two sets of features.

    ``|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½)``

    It falls as sets grow, all else equal: compare only figures of equal numbers, and of the same features.

    Args:
        ours: features of one set, at least 50.
        theirs: of the other.

    Raises:
        DataError: a set is too small, or holds numbers that are not finite.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500, there on features of a
        published classifier.
    """
    (mean, covariance), (mean2, covariance2) = (_gaussian(each) for each in (ours, theirs))
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp_min(0).sqrt().sum()
    return float((mean - mean2).square().sum() + covariance.trace() + covariance2.trace() - 2 * cross)


def precision_recall(ours: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> tuple[float, float]:
    """Share of our points that lie among the real ones, and of the real ones that lie among ours.

    A point lies among others if it is nearer to one of them than that one is to its third neighbour of its own kind.

    Args:
        ours: features of what was made, at least 50.
        real: of what it should be like.

    Raises:
        DataError: a set is too small.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", arXiv
        1904.06991.
    """
    _check(ours)
    _check(real)
    return _among(ours, real), _among(real, ours)


def nearest(ours: Float[Tensor, "n d"], theirs: Float[Tensor, "m d"]) -> Float[Tensor, "n"]:
    """Distance of each of our points to the nearest of theirs, root mean square over the features."""
    exact = "donot_use_mm_for_euclid_dist"  # or equal points lie apart
    parts = [torch.cdist(part, theirs, compute_mode=exact).amin(1) for part in ours.split(_ROWS)]
    return torch.cat(parts) / ours.shape[1] ** 0.5


def _among(points: Tensor, others: Tensor) -> float:
    reach = torch.cat(
        [torch.cdist(part, others).kthvalue(NEIGHBOURS + 1, dim=1).values for part in others.split(_ROWS)]
    )
    inside = [(torch.cdist(part, others) <= reach).any(1) for part in points.split(_ROWS)]
    return float(torch.cat(inside).double().mean())


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    _check(features)
    values = features.double()
    return values.mean(0), torch.cov(values.T)


def _check(features: Tensor) -> None:
    if len(features) < LEAST:
        raise DataError(f"{len(features)} images are too few to be compared as a set; take at least {LEAST}")
    if not bool(features.isfinite().all()):
        raise DataError("features are not finite")
