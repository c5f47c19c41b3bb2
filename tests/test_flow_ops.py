"""Affine coupling and invertible 1×1 convolution: the formulas, inverses, gradients, bad inputs, edges of memory.

Parity of backends, tracing and fake tensors are in test_ops.py, which reads the records.
"""

import pytest
import torch

import fastvoc
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.ops.affine_coupling import affine_coupling, affine_coupling_inverse
from fastvoc.ops.invertible_conv1x1 import inverse, invertible_conv1x1, invertible_conv1x1_inverse, log_abs_det
from tests.devices import ISAS, running_on, threads
from tests.test_ops import run_python


@pytest.fixture(params=ISAS)
def isa(request):
    with running_on(request.param):
        yield request.param


def tensors(*shapes, dtype=torch.float32, requires_grad=False):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng, dtype=dtype).requires_grad_(requires_grad) for shape in shapes]


@pytest.mark.parametrize("T", [1, 15, 16, 17, 255, 257, 4095, 4097])
def test_what_they_mean_at_every_edge(isa, T):
    x, log_s, t = tensors(*[(2, 5, T)] * 3)
    y, sums = affine_coupling(x, log_s, t)
    assert torch.allclose(y, x * log_s.exp() + t, rtol=1e-6, atol=1e-5)
    assert torch.allclose(sums, log_s.double().sum((1, 2)).float(), rtol=1e-6, atol=1e-4)
    assert torch.allclose(affine_coupling_inverse(y, log_s, t), x, rtol=1e-4, atol=1e-4)
    weight = torch.linalg.qr(torch.randn(5, 5))[0] * 1.5
    z, log_det = invertible_conv1x1(x, weight)
    assert torch.allclose(z, torch.nn.functional.conv1d(x, weight[:, :, None]), rtol=1e-5, atol=1e-5)
    assert torch.allclose(log_det, torch.tensor(5 * 1.5).log() - torch.tensor(5.0).log() + 4 * torch.tensor(1.5).log())
    assert torch.allclose(invertible_conv1x1_inverse(z, weight), x, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    options = dict(dtype=torch.float64, requires_grad=True)
    coupling, weight = tensors(*[(2, 3, 5)] * 3, **options), tensors((3, 3), **options)[0]
    for f, args in (
        (affine_coupling, coupling), (affine_coupling_inverse, coupling),
        (invertible_conv1x1, (coupling[0], weight)), (invertible_conv1x1_inverse, (coupling[0], weight)),
    ):
        assert torch.autograd.gradcheck(f, args)
        assert torch.autograd.gradgradcheck(f, args)


def test_gradients_of_the_kernels_are_the_references(isa):
    x, log_s, t = tensors(*[(3, 6, 1013)] * 3, requires_grad=True)
    weight = tensors((6, 6), requires_grad=True)[0]

    def gradients():
        y, sums = affine_coupling(x, log_s, t)
        z, log_det = invertible_conv1x1(y, weight)
        return torch.autograd.grad((z**2).mean() + sums.sum() * 0.01 + log_det, [x, log_s, t, weight])

    with fastvoc.backend("reference"):
        want = gradients()
    for ours, theirs in zip(gradients(), want, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_halves_of_one_tensor_are_not_copied(isa):
    """The channels of a flow and of its network come as slices: items lie apart."""
    both, params = tensors((3, 8, 501), (3, 8, 501))
    want = affine_coupling(*[part.contiguous() for part in (both[:, 4:], params[:, 4:], params[:, :4])])
    for got, y in zip(affine_coupling(both[:, 4:], params[:, 4:], params[:, :4]), want, strict=True):
        assert torch.equal(got, y)
    x = both.transpose(1, 2)
    odd = x[:, 1:401, :5], x[:, 2:402, 2:7], x[:, 3:403, 1:6]
    assert torch.equal(affine_coupling(*odd)[0], affine_coupling(*[part.contiguous() for part in odd])[0])
    weight = torch.randn(4, 8)[:, ::2].t()
    assert torch.equal(invertible_conv1x1(both[:, ::2], weight)[0], invertible_conv1x1(both[:, ::2].contiguous(), weight)[0])


def test_sums_do_not_depend_on_the_threads(isa):
    x, log_s, t, weight = tensors(*[(3, 4, 20011)] * 3, (4, 4), requires_grad=True)

    def run(n):
        with threads(n):
            y, sums = affine_coupling(x, log_s, t)
            z, _ = invertible_conv1x1(y, weight)
            return [z, sums, *torch.autograd.grad((z**3).sum() + sums.sum(), [x, log_s, t, weight])]

    one = run(1)
    for n in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, run(n), strict=True))


def test_nothing_in_nothing_out(isa):
    for shape in ((0, 4, 10), (2, 4, 0)):
        x = torch.zeros(shape, requires_grad=True)
        weight = torch.eye(4, requires_grad=True)
        y, sums = affine_coupling(x, x, x)
        z, _ = invertible_conv1x1(y, weight)
        (z.sum() + sums.sum()).backward()
        assert y.shape == shape == z.shape and not sums.any() and not weight.grad.any()


def test_huge_scales_saturate(isa):
    x, log_s, t = torch.ones(1, 1, 4), torch.tensor([[[1e30, -1e30, 90.0, -200.0]]]), torch.zeros(1, 1, 4)
    assert affine_coupling(x, log_s, t)[0].isfinite().all()
    assert affine_coupling_inverse(x, log_s, t).isfinite().all()
    assert affine_coupling(x, torch.full((1, 1, 4), torch.nan), t)[0].isnan().all()


def test_negative_determinants_have_a_logarithm():
    assert torch.allclose(log_abs_det(torch.diag(torch.tensor([-2.0, 3.0]))), torch.tensor(6.0).log())


@pytest.mark.parametrize(
    "weight", [torch.ones(3, 3), torch.zeros(3, 3), torch.full((3, 3), torch.nan), torch.diag(torch.tensor([1, 1, 1e-9]))]
)
def test_singular(weight):
    with pytest.raises(ConfigError, match="3 × 3 matrix is singular: its condition number"):
        invertible_conv1x1_inverse(torch.zeros(1, 3, 4), weight)


def test_the_inverse_is_taken_in_float64():
    """A Hilbert matrix of five: condition 5e5, where an inverse in float32 loses the last digits of all."""
    at = torch.arange(5, dtype=torch.float64)
    weight = (1 / (at[:, None] + at + 1)).float()
    exact = weight.double().inverse()
    assert float((inverse(weight) - exact).abs().max()) <= 2**-24 * float(exact.abs().max())


def test_errors():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match=r"x is \(2, 3\), expected \(B, C, T\)"):
        affine_coupling(x[..., 0], x[..., 0], x[..., 0])
    with pytest.raises(ShapeError, match=r"y is \(2, 3, 4\) but t is \(2, 3, 3\)"):
        affine_coupling_inverse(x, x, x[..., 1:])
    with pytest.raises(DTypeError, match="log_s is torch.float16"):
        affine_coupling(x, x.half(), x)
    with pytest.raises(DeviceError, match="t is on meta"):
        affine_coupling(x, x, x.to("meta"))
    with pytest.raises(ShapeError, match=r"x is \(2, 3, 4\) and weight \(4, 4\)"):
        invertible_conv1x1(x, torch.eye(4))
    with pytest.raises(DTypeError, match="weight is torch.float64"):
        invertible_conv1x1(x, torch.eye(3).double())
    with pytest.raises(DTypeError, match="floating point"):
        invertible_conv1x1(x.long(), torch.eye(3))
    with pytest.raises(DeviceError, match="weight is on meta"):
        invertible_conv1x1_inverse(x, torch.eye(3).to("meta"))


def test_more_channels_than_the_kernel_takes_go_to_the_reference():
    x, weight = tensors((1, 33, 10), (33, 33))
    assert torch.equal(invertible_conv1x1(x, weight)[0], torch.matmul(weight, x))
    with fastvoc.backend("cpu"), pytest.raises(fastvoc.errors.BackendUnavailableError, match="at most 32 channels"):
        invertible_conv1x1(x, weight)


def test_kernels_stay_inside_their_memory():
    run_python("""
        import os
        import numpy as np, fastvoc
        from fastvoc import _C
        from tests.guards import PAGE, Guards
        fastvoc.set_num_threads(1)
        guards = Guards()
        pages = [guards.bytes(PAGE, False).view(np.float32) for _ in range(6)]
        rng = np.random.default_rng(0)
        isas = [name for name, supported, *_ in _C.cpu_isas() if supported]
        for isa, T, C in [(isa, T, C) for isa in isas for T in range(1, 2 * 16 + 2) for C in (1, 3, 6, 8)]:
            fastvoc.set_cpu_isa(isa)
            for at_end in (False, True):
                def part(page, n):
                    page[:] = 0
                    cut = page[len(page) - n:] if at_end else page[:n]
                    cut[:] = rng.standard_normal(n)
                    return cut
                n = C * T
                a, b, c, y, z = [part(p, n) for p in pages[:5]]
                w = part(pages[5], C * C)
                at = lambda x: x.ctypes.data
                sums = np.zeros(1, np.float32)
                _C.affine_coupling_cpu(at(a), n, at(b), n, at(c), n, at(y), at(sums), 1, n)
                assert np.abs(y - (a * np.exp(b) + c)).max() < 1e-4 and abs(sums[0] - b.sum()) < 1e-3
                _C.affine_coupling_inverse_cpu(at(y), n, at(b), n, at(c), n, at(z), 1, n)
                assert np.abs(z - a).max() < 1e-3
                _C.affine_coupling_backward_cpu(at(c), n, at(sums), at(a), n, at(b), n, at(y), at(z), 1, n)
                assert np.abs(z - (c * np.exp(b) * a + sums[0])).max() < 1e-3
                _C.invertible_conv1x1_cpu(at(w), at(a), at(y), 1, C, T)
                W, A, D = w.reshape(C, C), a.reshape(C, T), b.reshape(C, T)
                assert np.abs(y.reshape(C, T) - W @ A).max() < 1e-4
                dw = np.zeros(C * C, np.float32)
                _C.invertible_conv1x1_backward_cpu(at(w), at(b), at(a), at(z), at(dw), 1, C, T)
                assert np.abs(z.reshape(C, T) - W.T @ D).max() < 1e-4
                assert np.abs(dw.reshape(C, C) - D @ A.T).max() < 1e-3
        os._exit(0)
    """)
