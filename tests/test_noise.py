"""Noise by position: the numbers of ops/philox.py, whatever the piece, the row and the item that are asked for."""

import numpy as np
import pytest
import torch

from fastvoc.ops import noise, philox


def by_numpy(seed, item, row, length):
    return philox.uniform(philox.philox(seed, np.arange(length), item, row // 4)[:, row % 4])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0xDEADBEEF12345678, 2**64 - 1])
def test_the_uniform_numbers_are_philoxs(seed):
    got = noise.uniform_noise(seed, 3, 2, 7, 50, "cpu")
    want = [[by_numpy(seed, item, row, 50) for row in range(2, 9)] for item in range(3)]
    assert got.dtype == torch.float32 and np.array_equal(got.numpy(), np.array(want, np.float32))
    assert 0 < got.min() and got.max() < 1 and len(got.unique()) > 1000


@pytest.mark.parametrize(("first", "n"), [(0, 1), (3, 1), (3, 2), (4, 4), (0, 9), (5, 0)])
def test_pieces_and_rows_do_not_matter(first, n, monkeypatch):
    whole = noise.uniform_noise(7, 2, 0, 12, 33, "cpu")
    monkeypatch.setattr(noise, "PIECE", (20, 20))
    assert torch.equal(noise.uniform_noise(7, 2, first, n, 33, "cpu"), whole[:, first : first + n])
    assert torch.equal(noise.uniform_noise(7, 1, first, n, 8, "cpu"), whole[:1, first : first + n, :8])
    assert noise.uniform_noise(7, 0, 0, 1, 5, "cpu").shape == (0, 1, 5)
    assert noise.uniform_noise(7, 1, 0, 1, 0, "cpu").shape == (1, 1, 0)


def test_normal_numbers_are_the_twins():
    u = np.concatenate([by_numpy(5, 0, 0, 100_000), np.float32([1e-5, 1e-4, 0.5, 1 - 1e-5, 0.9, 3e-4])])
    got, want = noise.normal(torch.from_numpy(u)).numpy(), philox.normal(u)
    assert got.dtype == np.float32 and (np.abs(got - want) <= 2e-7 * np.maximum(np.abs(want), 1)).all()
    assert (got == want).mean() > 0.999
    assert abs(got[:100_000].mean()) < 0.02 and abs(got[:100_000].std() - 1) < 0.01


def test_logistic_numbers():
    u = torch.tensor([1e-5, 0.25, 0.5, 0.9])
    assert torch.allclose(noise.logistic(u).double().sigmoid(), u.double(), rtol=1e-6)


def test_the_default_dtype_does_not_matter():
    want = noise.normal(noise.uniform_noise(1, 1, 0, 1, 20, "cpu"))
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(noise.normal(noise.uniform_noise(1, 1, 0, 1, 20, "cpu")), want)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    cpu, gpu = (noise.uniform_noise(2**40 + 3, 3, 1, 6, 1000, device) for device in ("cpu", "cuda"))
    assert torch.equal(gpu.cpu(), cpu)
    assert torch.allclose(noise.normal(gpu).cpu(), noise.normal(cpu), rtol=0, atol=1e-6)
