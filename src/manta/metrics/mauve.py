"""MAUVE: how much probability two sets of texts share, of features of theirs that any encoder gives."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.metrics.extra import missing
from manta.metrics.measured import LeftOut


@dataclass(frozen=True, kw_only=True)
class MauveConfig:
    """How features become histograms, and histograms a score; the defaults are those of the published scores."""

    clusters: int | None = None
    """Bins of the histograms; None: a tenth of the smaller set, at least 2."""
    explained_variance: float = 0.9
    """Share of the variance that the principal components kept explain, in (0, 1]."""
    normalise: bool = True
    """Divide each feature vector by its length first."""
    restarts: int = 5
    """Runs of k-means, of which the best is kept."""
    max_rounds: int = 500
    """Most rounds of a run of k-means; it stops when no point moves."""
    scale: float = 5.0
    """c: how steeply a divergence lowers the score; higher is stricter."""
    points: int = 25
    """Mixtures of the two histograms at which the frontier is drawn."""
    min_texts: int = 100
    """Texts of the smaller set below which there is no score: the histograms of so few have a handful of bins, and the
    score is luck of the draw. Published scores have 5,000; scores of several numbers of texts do not compare."""
    repeats: int = 5
    """Quantisations, each from another part of the generator's stream, over which the score is averaged."""

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 2:
            raise UsageError(f"MAUVE needs at least 2 clusters, received {self.clusters}")
        if not 0 < self.explained_variance <= 1:
            raise UsageError(f"explained_variance lies in (0, 1], received {self.explained_variance}")
        if self.scale <= 0:
            raise UsageError(f"the scale of MAUVE is above 0 (5 is usual), received {self.scale}")
        if min(self.restarts, self.max_rounds, self.repeats) < 1 or min(self.points, self.min_texts) < 2:
            raise UsageError("MAUVE needs at least 1 restart, round and repeat, and 2 points and texts")


@dataclass(frozen=True)
class Mauve:
    """A MAUVE score, and how much of it is luck of the quantisation."""

    value: float
    """Mean over quantisations, 0 … 1; 1 is equal histograms."""
    spread: float
    """Standard deviation over quantisations. It does not hold what other texts of the same source would change."""
    values: tuple[float, ...]
    """The score of each quantisation."""
    clusters: int
    """Bins of the histograms; scores with other bins do not compare."""
    without: Float[Tensor, "n"] | None = field(default=None, repr=False, compare=False)
    """The score without the i-th text of either set, in the same clusters; None where the sets have several sizes."""

    @property
    def measured(self) -> LeftOut | float:
        """For an interval over texts, with the variance that the mean over quantisations has."""
        if self.without is None:
            return self.value
        return LeftOut(self.value, self.without, self.spread**2 / max(1, len(self.values) - 1))

    def __str__(self) -> str:
        how = f"{len(self.values)} quantisations into {self.clusters} clusters"
        return f"{self.value:.4f} (standard deviation {self.spread:.4f} over {how})"


def mauve(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "m d"],
    *,
    generator: torch.Generator,
    config: MauveConfig | None = None,
) -> Mauve:
    """MAUVE of two sets of features: the area under the divergence frontier of their histograms over common clusters.

        C = {(e^(−c KL(Q‖R)), e^(−c KL(P‖R))) : R = λ P + (1 − λ) Q, 0 < λ < 1},   MAUVE = area under C

    P and Q are the shares of either set in the clusters of k-means over both, after principal components. For sets
    without a common cluster the area is 1 / binom(2c, c), 1/252 at c = 5.

    The score falls with the number of clusters and rises with the number of texts: compare scores of equal numbers of
    texts, of one encoder and one configuration, and beside that of one half of the corpus against the other. The order
    of the rows or of the sets, a rotation or a common scale of the features change it by rounding only. Not to be
    confused with Fréchet distances, which compare two moments.

    Args:
        first: features of one set, at least 2 texts.
        second: features of the other set, by the same encoder, at least 2 texts.
        generator: draws the first centres of k-means.
        config: None for the defaults.

    Returns:
        The score with its spread over quantisations.

    Raises:
        DataError: fewer than `min_texts` texts in a set, widths that differ, a value that is not finite, or
            scikit-learn is not installed.

    Source: Pillutla et al., "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers"
    (NeurIPS 2021).
    """
    config = config or MauveConfig()
    if min(len(first), len(second)) < config.min_texts:
        raise DataError(
            f"MAUVE of fewer than {config.min_texts} texts is luck of the draw, received {len(first)} and "
            f"{len(second)}; give more"
        )
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features of one encoder have one width, received {first.shape[1]} and {second.shape[1]}")
    features = torch.cat([first, second]).double()
    if not bool(features.isfinite().all()):
        raise DataError("MAUVE needs finite features, received NaN or infinity")
    if config.normalise:
        features = torch.nn.functional.normalize(features, dim=1)
    clusters = config.clusters or max(2, round(min(len(first), len(second)) / 10))
    coordinates = principal_components(features, config.explained_variance)
    order = coordinates[:, 0].argsort(stable=True)  # k-means then starts the same whatever the order of the rows
    ours = order < len(first)
    values, without = [], []
    for _ in range(config.repeats):
        labels = k_means(
            coordinates[order], clusters, generator=generator, restarts=config.restarts, max_rounds=config.max_rounds
        )
        p, q = (torch.bincount(labels[side], minlength=clusters).double() / int(side.sum()) for side in (ours, ~ours))
        values.append(frontier_area(p, q, scale=config.scale, points=config.points))
        if len(first) == len(second):
            placed = torch.empty_like(labels).index_copy_(0, order, labels)
            without.append(_without_each(placed[: len(first)], placed[len(first) :], clusters, config))
    scores = torch.tensor(values, dtype=torch.float64)
    left_out = torch.stack(without).mean(0) if without else None
    return Mauve(float(scores.mean()), float(scores.std(correction=0)), tuple(values), clusters, left_out)


def _without_each(first: Tensor, second: Tensor, clusters: int, config: MauveConfig) -> Tensor:
    """The score without the i-th text of either set, for each i; clusters as they are."""
    p, q = (torch.bincount(labels, minlength=clusters).double() for labels in (first, second))
    pairs, place = torch.stack([first, second]).unique(dim=1, return_inverse=True)
    n = len(first)
    shares = [
        (counts - torch.nn.functional.one_hot(gone, clusters)) / (n - 1)
        for counts, gone in zip((p, q), pairs, strict=True)
    ]
    areas = [frontier_area(*each, scale=config.scale, points=config.points) for each in zip(*shares, strict=True)]
    return torch.tensor(areas, dtype=torch.float64)[place]


def frontier_area(p: Float[Tensor, "k"], q: Float[Tensor, "k"], *, scale: float = 5.0, points: int = 25) -> float:
    """Area under the divergence frontier of two histograms; see `mauve` for the equation.

    The frontier is drawn at `points` equidistant λ, joined by straight lines, with its ends at (1, 0) and (0, 1). With
    25 points, as published scores have it, the area was within 0.003 of the integral in a search for the worst case.

    Args:
        p: shares of one set in the bins, 0 or more, with sum 1.
        q: shares of the other set.
        scale: c, above 0.
        points: at least 2.

    Returns:
        An area in (0, 1]; 1 if and only if p = q.

    Raises:
        DataError: a negative share, or shares whose sum is not 1.
    """
    for shares in (p, q):
        if bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-4:
            raise DataError("a histogram holds shares of at least 0 whose sum is 1; divide counts by their sum")
    p, q = p.double(), q.double()
    weight = torch.linspace(1e-6, 1 - 1e-6, points, dtype=torch.float64)[:, None]
    mixture = q + weight * (p - q)  # in this form equal to both where they are equal
    x = torch.exp(-scale * (torch.xlogy(q, q) - torch.xlogy(q, mixture)).sum(1).clamp(min=0))
    y = torch.exp(-scale * (torch.xlogy(p, p) - torch.xlogy(p, mixture)).sum(1).clamp(min=0))
    x = torch.cat([x.new_ones(1), x, x.new_zeros(1)])
    y = torch.cat([y.new_zeros(1), y, y.new_ones(1)])
    return float(-torch.trapezoid(y, x))


def principal_components(features: Float[Tensor, "n d"], explained_variance: float) -> Float[Tensor, "n k"]:
    """Coordinates of features along the fewest principal axes that explain a share of their variance.

    Axes have no sign of their own; each is turned so that its third moment is positive. The coordinates therefore do
    not depend on the order of the rows or on a rotation of the features. (Scikit-learn's `PCA`
    signs an axis by its largest coefficient, which a rotation changes.)

    Args:
        features: one row a text.
        explained_variance: share to explain, in (0, 1].

    Returns:
        Coordinates, the axis of most variance first; a single column of zeros if all rows are equal.
    """
    centred = features - features.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = singular.square().cumsum(0)
    if float(variance[-1]) <= 1e-24 * max(1.0, float(features.square().sum())):
        return features.new_zeros(len(features), 1)
    kept = int((variance < explained_variance * variance[-1] * (1 - 1e-12)).sum()) + 1
    coordinates = (left * singular)[:, :kept]
    return coordinates * torch.where(coordinates.pow(3).sum(0) < 0, -1.0, 1.0)


def k_means(
    points: Float[Tensor, "n k"], clusters: int, *, generator: torch.Generator, restarts: int = 5, max_rounds: int = 500
) -> Int64[Tensor, "n"]:
    """Cluster of each point: Lloyd's rounds from k-means++ centres, the best of several runs by squared distance.

    It is scikit-learn's, which takes the best of a few draws for each next centre.

    Args:
        points: coordinates.
        clusters: most clusters, at least 1; there are fewer where fewer points differ.
        generator: draws the first centres.
        restarts: runs.
        max_rounds: most rounds of a run.

    Returns:
        A number from 0 to `clusters` − 1 for each point.

    Raises:
        DataError: scikit-learn is not installed.

    Source: Lloyd (1982); Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (2007).
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise missing("k-means", "scikit-learn") from error
    runs = KMeans(
        min(clusters, len(points.unique(dim=0))),
        n_init=restarts,  # pyright: ignore[reportArgumentType]
        max_iter=max_rounds,
        tol=0,
        random_state=int(torch.randint(2**32, (), generator=generator)),
    )
    return torch.from_numpy(runs.fit_predict(points.numpy(force=True))).long()
