"""Time conditioning: one time or many, and nothing at the start."""

import torch

from manta.nets.conditioning import SharedModulation, TimeEmbedding


def test_a_time_has_one_embedding_wherever_it_stands():
    torch.manual_seed(0)
    embed = TimeEmbedding(8, frequencies=6)
    time = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
    grid = embed(time)
    assert grid.shape == (2, 2, 8)
    torch.testing.assert_close(grid[0, 1], grid[1, 1])
    torch.testing.assert_close(grid[:, 1], embed(time[:, 1]))
    assert torch.cdist(embed(torch.linspace(0, 1, 11)), embed(torch.linspace(0, 1, 11))).fill_diagonal_(1).min() > 1e-3


def test_embedding_is_its_formula_and_smooth_at_the_slow_end():
    embed = TimeEmbedding(8, frequencies=3).double()
    angles = 0.3 * torch.tensor([1.0, 10**0.75, 10**1.5], dtype=torch.float64)
    expected = embed.mlp(torch.cat([angles.cos(), angles.sin()]))
    torch.testing.assert_close(embed(torch.tensor(0.3, dtype=torch.float64)), expected, rtol=1e-4, atol=1e-4)


def test_shared_modulation_starts_at_zero_and_learns():
    shared = SharedModulation(4)
    row, element = shared(torch.randn(2, 4)), shared(torch.randn(2, 3, 4))
    assert row.shape == (2, 1, 24) and element.shape == (2, 3, 24)
    assert torch.count_nonzero(row) == torch.count_nonzero(element) == 0
    element.sum().backward()
    assert shared.linear.weight.grad is not None and shared.linear.weight.grad.abs().min() > 0
