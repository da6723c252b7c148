"""Classes of words: those that stand in the same places are in one class, whatever they are."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from manta.text.classes import clusters, word_classes


def test_words_of_a_grammar_are_told_apart_by_where_they_stand():
    """Determiner, noun, verb: three words each; 11 never comes, 0 ends."""
    generator = np.random.default_rng(0)
    kinds = [[2, 3, 4], [5, 6, 7], [8, 9, 10]]
    rows = [[int(generator.choice(kind)) for _ in range(3) for kind in kinds] + [0] for _ in range(200)]
    found = word_classes(rows, 12, 4, alone=[0]).tolist()
    assert found[0] == 0 and found.count(0) == 1
    groups = [{found[word] for word in kind} for kind in kinds]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    assert word_classes(rows, 12, 4, alone=[0]).tolist() == found
    assert word_classes([], 12, 4, alone=[0]).shape == (12,)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_as_good_as_a_librarys(seed):
    generator = torch.Generator().manual_seed(seed)
    points, weights = torch.randn(300, 5, generator=generator), torch.rand(300, generator=generator)

    def cost(labels) -> float:
        labels, total = torch.as_tensor(np.asarray(labels)).long(), 0.0
        for k in labels.unique():
            own, w = points[labels == k], weights[labels == k, None]
            centre = (own * w).sum(0) / w.sum()
            total += float(((own - centre).square() * w).sum())
        return total

    theirs = KMeans(8, n_init="auto", random_state=seed).fit(points.numpy(), sample_weight=weights.numpy()).labels_
    assert cost(clusters(points, weights, 8, seed)) < 1.1 * cost(theirs)
