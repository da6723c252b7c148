"""Muon follows its paper, and every parameter has exactly one optimiser."""

import pytest
import torch
from torch import nn

from manta.errors import CheckpointError
from manta.training.muon import Muon, _together, orthogonalise
from manta.training.optimizer import Kind, build_optimizers, hidden_matrices, load_moments, moments


class Net(nn.Module):
    """A net with one parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6)
        self.inner = nn.Linear(6, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.spectrum = nn.Parameter(torch.randn(2, 3, 4))
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


def build(net: Net, kind: Kind = "muon", learning_rate: float = 0.1, weight_decay: float = 0.3):
    return build_optimizers(net, kind, learning_rate=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))


def set_gradients(net: Net, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_trained_parameter_has_one_optimizer(kind):
    net = Net()
    held = [id(p) for o in build(net, kind) for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert [id(p) for p in hidden_matrices(net)] == [id(net.inner.weight)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_vectors_do_not_decay(kind):
    net = Net()
    groups = [group for optimizer in build(net, kind) for group in optimizer.param_groups]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all((decays[id(p)] == 0) == (p.ndim < 2) for p in net.parameters() if p.requires_grad)


def test_muon_steps_along_orthogonal_matrices_of_the_size_of_adamws_steps():
    """W - W' = lr (0.2 sqrt(max(4, 6)) U V^T + decay W) for the Nesterov momentum U S V^T, up to Newton-Schulz."""
    net, lr, decay = Net(), 0.1, 0.3
    optimizers, momentum = build(net, "muon", lr, decay), torch.zeros(4, 6)
    for step in range(3):
        set_gradients(net, step)
        gradient, before = net.inner.weight.grad, net.inner.weight.detach().clone()
        assert gradient is not None
        momentum = 0.95 * momentum + 0.05 * gradient
        left, _, right = torch.linalg.svd(0.05 * gradient + 0.95 * momentum, full_matrices=False)
        for optimizer in optimizers:
            optimizer.step()
        moved = (before - net.inner.weight.detach()) / lr - decay * before
        inner = left.T @ (moved / (0.2 * 6**0.5)) @ right.T
        assert (inner.diag() - 1).abs().max() < 0.4, "five steps bring singular values into about 0.7 ... 1.2"
        assert (inner - inner.diag().diag()).abs().max() < 0.02


def test_muon_leaves_the_rest_to_adamw():
    ours, theirs = Net(), Net()
    both, adamw = build(ours, "muon"), build(theirs, "adamw")
    for step in range(3):
        for net, optimizers in ((ours, both), (theirs, adamw)):
            set_gradients(net, step)
            for optimizer in optimizers:
                optimizer.step()
    for name in ("table.weight", "inner.bias", "gain", "spectrum", "frozen.weight"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name), atol=0, rtol=0)
    assert not torch.equal(ours.inner.weight, theirs.inner.weight)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_restore_every_optimizer(kind):
    net = Net()
    optimizers, named = build(net, kind), dict(net.named_parameters())
    set_gradients(net, 0)
    for optimizer in optimizers:
        optimizer.step()
    stored = {name: value.clone() for name, value in moments(optimizers, named).items()}
    assert ("inner.weight/momentum_buffer" in stored) == (kind == "muon")
    other = Net()
    other.load_state_dict(net.state_dict())
    copies = build(other, kind)
    load_moments(copies, dict(other.named_parameters()), stored)
    for model, group in ((net, optimizers), (other, copies)):
        set_gradients(model, 1)
        for optimizer in group:
            optimizer.step()
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in net.named_parameters())


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_moments_of_another_kind_are_refused(before, after):
    net = Net()
    optimizers, named = build(net, before), dict(net.named_parameters())
    set_gradients(net, 0)
    for optimizer in optimizers:
        optimizer.step()
    with pytest.raises(CheckpointError, match=r"inner\.weight.*another train\.optimizer"):
        load_moments(build(net, after), named, moments(optimizers, named))


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (5, 5)])
def test_muon_in_bfloat16_is_torchs(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.3, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_orthogonalised_in_float32_keeps_the_singular_vectors(shape):
    """U S V^T becomes U S' V^T with S' near 1, whatever the scale."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    for scale in (1e-3, 1.0, 1e3):
        found = left.T @ orthogonalise(scale * matrix) @ right.T
        assert found.dtype == torch.float32
        assert ((found.diagonal() > 0.5) & (found.diagonal() < 1.5)).all()
        torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-3, rtol=0)


def test_a_matrix_without_a_gradient_stays():
    parameter = nn.Parameter(torch.ones(2, 3))
    Muon([parameter], lr=0.1, weight_decay=0.3).step()
    assert torch.equal(parameter, torch.ones(2, 3))


def test_several_matrices_at_once_are_orthogonalised_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 8), (8, 5), (6, 6)):
        matrices = torch.randn(4, *shape, generator=generator)
        torch.testing.assert_close(orthogonalise(matrices), torch.stack([orthogonalise(m) for m in matrices]))


def test_an_accelerator_steps_alike_matrices_together_and_a_cpu_each_alone():
    shapes = ((2, 3), (3, 2), (2, 3))
    for device, sizes in (("meta", [2, 1]), ("cpu", [1, 1, 1])):
        assert [len(some) for some in _together([torch.empty(s, device=device) for s in shapes])] == sizes
