"""Muon: singular values near one, steps of the right size and direction, and Adam's own steps for what is no matrix."""

import pytest
import torch

from fastvoc.training.muon import Muon, orthogonalised

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 64, 40), (1, 40, 9)])
def test_orthogonalised_keeps_the_vectors_and_levels_the_values(shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g) * 0.01
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    values = u.mT @ orthogonalised(x) @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.25
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert s.max() / s.min() > 1.5  # else nothing was levelled


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv1d(12, 16, 3), torch.nn.Conv1d(16, 10, 1), torch.nn.Conv1d(10, 4, 1))


def gradients(net, step):
    torch.manual_seed(10 + step)
    for p in net.parameters():
        p.grad = torch.randn_like(p)


def test_what_is_no_hidden_matrix_takes_adams_steps():
    ours, theirs = network(), network()
    muon = Muon(ours.named_parameters(), lr=4e-2, adam=["1.*"], adam_scale=0.25)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step in range(4):
        for net, optimizer in ((ours, muon), (theirs, adam)):
            gradients(net, step)
            optimizer.step()
    same = {name: torch.allclose(a, b, atol=1e-6) for (name, a), b in zip(ours.named_parameters(), theirs.parameters())}
    # named for Adam, biases, and a matrix of four rows
    assert same == {"0.weight": False, "0.bias": True, "1.weight": True, "1.bias": True, "2.weight": True, "2.bias": True}


def test_a_matrix_steps_by_its_momentum_made_orthogonal():
    net = network()
    muon = Muon(net.named_parameters(), lr=1e-2, momentum=0.9)
    weight, mean = net[0].weight, torch.zeros(16, 36)
    for step in range(3):
        gradients(net, step)
        before, gradient = weight.detach().clone(), weight.grad.flatten(1)
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient
        expected = orthogonalised((0.1 * gradient + 0.9 * mean)[None])[0] * -(1e-2 * 0.2 * 6)
        torch.testing.assert_close((weight - before).detach().flatten(1), expected, atol=1e-6, rtol=1e-4)


def test_networks_without_a_matrix_and_parameters_without_gradient():
    net = torch.nn.Linear(3, 2)
    optimizer = Muon(net.named_parameters())
    before = net.weight.detach().clone()
    optimizer.step()
    assert torch.equal(net.weight, before) and [g["kind"] for g in optimizer.param_groups] == ["adam"]
