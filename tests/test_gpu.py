"""The CUDA library on a GPU: what the emulator cannot show. `make gpu` runs these; elsewhere they are skipped.

Every operator's parity on a GPU, for all backends, is in test_ops.py, which finds the device by itself.
"""

import threading

import pytest
import torch

import fastvoc
from fastvoc import _cuda
from fastvoc._op import OPS
from fastvoc.errors import DeviceError, KernelError
from fastvoc.ops.gated_residual_stack import ReferencePlan as ReferenceStack
from fastvoc.ops.gated_residual_stack_cuda import CudaPlan as CudaStack
from fastvoc.ops.wavenet_generate import ReferencePlan as ReferenceWaveNet
from fastvoc.ops.wavenet_generate_cuda import CudaPlan as CudaWaveNet
from tests import test_cuda_stack, test_cuda_wavenet
from tests.test_cuda_stack import case, exact_of
from tests.test_wavenet_generate import GRID, HEADS, job_of, outputs_of, start, weights_of, within

pytestmark = pytest.mark.gpu
PRECISIONS = ["fp32", "fp16", "bf16"]
EPS = {"fp32": torch.finfo(torch.float32).eps, "fp16": 2.0**-10, "bf16": 2.0**-7}


def on_gpu(weights):
    moved = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in vars(weights).items()}
    return type(weights)(**moved)


def moved(arguments):
    return [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]


@pytest.fixture(autouse=True, scope="module")
def library():
    assert _cuda.why_not() is None, f"the CUDA library does not work here: {_cuda.why_not()}"
    fastvoc.warmup()


# ---- accuracy --------------------------------------------------------------------------------------------------------

SIZES = test_cuda_stack.GRID | {
    "parallel wavegan, 1 s": dict(R=64, H=64, S=64, C=80, k=3, dilations=[2 ** (i % 10) for i in range(30)], T=22050),
    "diffwave 128": dict(R=128, H=128, S=128, C=80, k=3, dilations=[2 ** (i % 10) for i in range(12)], T=3001, step=True),
    "waveglow 256": dict(R=256, H=256, S=256, C=640, k=3, dilations=[2**i for i in range(8)], T=2756),
    "waveglow 512": dict(R=512, H=512, S=512, C=640, k=3, dilations=[2**i for i in range(8)], T=500, B=3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_stack(sizes, precision):
    weights, arguments = case(**sizes)
    weights, arguments = on_gpu(weights), moved(arguments)
    exact = exact_of(weights, arguments)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    rounded = lambda t: t.to(dtype) if isinstance(t, torch.Tensor) else t
    plain = type(weights)(**{n: rounded(v) for n, v in vars(weights).items()})
    theirs = ReferenceStack(plain).run(*map(rounded, arguments))
    ours = CudaStack(weights, precision).run(*arguments)
    worst = lambda y: float((y.double() - exact).abs().max())
    assert ours.isfinite().all() and worst(ours) <= 2 * worst(theirs) + 4 * EPS[precision] * float(exact.abs().max())


LARGE = {
    "nv-wavenet": dict(residual=64, gate=128, skip=256, hidden=256, out=256, head="softmax", mels=80, kernel=2,
                       dilations=[2 ** (i % 10) for i in range(20)]),
    "r9y9": dict(residual=128, gate=256, skip=128, hidden=128, out=30, mels=80, kernel=3,
                 dilations=[2 ** (i % 6) for i in range(24)]),
    "beyond one cluster": dict(residual=512, gate=512, skip=256, hidden=256, out=256, head="softmax", mels=80, kernel=3,
                               dilations=[2 ** (i % 10) for i in range(30)]),
}


@pytest.mark.parametrize("sizes", (GRID | LARGE).values(), ids=GRID | LARGE)
def test_wavenet(sizes):
    weights = weights_of(**sizes)
    exact = outputs_of(ReferenceWaveNet(weights.double()), weights)
    theirs = outputs_of(ReferenceWaveNet(weights), weights)
    ours = outputs_of(CudaWaveNet(on_gpu(weights)), weights).cpu()
    assert ours.isfinite().all() and within(ours, theirs, exact, k=4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("sizes", LARGE.values(), ids=LARGE)
def test_wavenet_half_precision(sizes, precision):
    weights = weights_of(**sizes)
    exact = outputs_of(ReferenceWaveNet(weights.double()), weights, 5)
    ours = outputs_of(CudaWaveNet(on_gpu(weights), precision), weights, 5).cpu()
    error, size = (ours - exact).pow(2).mean().sqrt(), exact.pow(2).mean().sqrt()
    assert 0 < error < 3 * EPS[precision] * size


@pytest.mark.parametrize("head", HEADS)
def test_wavenet_draws_what_the_cpu_draws(head):
    weights = weights_of(head=head, out=HEADS[head])
    cond = job_of(weights, 3, 60)[0]
    initial = 3.0 if weights.n_classes else 0.0
    run = lambda plan: torch.stack(plan.run(start(plan, 3, 11, 1.0, initial), [60] * 3, cond)[0]).cpu()
    ours, theirs = run(CudaWaveNet(on_gpu(weights))), run(ReferenceWaveNet(weights))
    assert torch.equal(ours, theirs) if weights.n_classes else torch.allclose(ours, theirs, atol=5e-5)


# ---- the same every time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wavenet_250_times(precision):
    weights = weights_of(**LARGE["nv-wavenet"])
    plan = CudaWaveNet(on_gpu(weights), precision)
    cond = moved(job_of(weights, 60, 20)[0])
    run = lambda: torch.stack(plan.run(start(plan, 60), [20] * 60, cond)[0])
    first = run()
    assert all(torch.equal(run(), first) for _ in range(250))
    alone = plan.run([plan.begin(0, 7, 1.0, 0.0)], [20], cond[7:8])[0][0]
    assert torch.equal(alone, first[7])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stack_250_times(precision):
    weights, arguments = case(**SIZES["odd"] | dict(B=60, T=500))
    plan, arguments = CudaStack(on_gpu(weights), precision), moved(arguments)
    first = plan.run(*arguments)
    assert all(torch.equal(plan.run(*arguments), first) for _ in range(250))


@pytest.mark.parametrize("name", ["affine_coupling", "invertible_conv1x1_backward"])
def test_reductions_250_times(name):
    op = OPS[name]
    args = op.make_args((24, 8, 2000), torch.float32, "cuda")
    with fastvoc.backend("cuda"):
        first = op(*args)
        for _ in range(250):
            assert all(torch.equal(a, b) for a, b in zip(op(*args), first))


# ---- streams, graphs, devices, errors --------------------------------------------------------------------------------


def test_in_a_graph():
    weights, arguments = case(**SIZES["diffwave"])
    plan, arguments = CudaStack(on_gpu(weights), "bf16"), moved(arguments)
    eager = plan.run(*arguments)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plan.run(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = plan.run(*arguments)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager)


def test_on_a_side_stream_in_order_with_torch():
    """Our static CUDA runtime beside torch's: one stream handle, one order."""
    op, side = OPS["gated_activation"], torch.cuda.Stream()
    with torch.cuda.stream(side), fastvoc.backend("cuda"):
        a = torch.zeros(1 << 24, device="cuda")
        for _ in range(50):
            a = op(a + 1, a)
        y = a.sum()
    side.synchronize()
    b = torch.zeros(1 << 24, device="cuda")
    for _ in range(50):
        b = op.reference(b + 1, b)
    assert torch.allclose(y, b.sum(), rtol=1e-4)


def test_from_eight_threads():
    weights, arguments = case(**SIZES["odd"])
    plan, arguments = CudaStack(on_gpu(weights)), moved(arguments)
    want, results = plan.run(*arguments), [None] * 8

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            results[i] = [plan.run(*arguments) for _ in range(20)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert all(torch.equal(y, want) for ys in results for y in ys)


def test_a_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    weights, arguments = case(**SIZES["odd"])
    first = CudaStack(on_gpu(weights)).run(*moved(arguments))
    other = lambda t: t.to("cuda:1") if isinstance(t, torch.Tensor) else t
    there = type(weights)(**{n: other(v) for n, v in vars(weights).items()})
    y = CudaStack(there).run(*map(other, arguments))
    assert y.device.index == 1 and torch.cuda.current_device() == 0 and torch.equal(y.cpu(), first.cpu())
    with pytest.raises(DeviceError):
        CudaStack(there).run(*moved(arguments))


def test_a_refused_launch_names_op_and_shapes_and_harms_nothing():
    weights = weights_of()
    plan = CudaWaveNet(on_gpu(weights))
    plan.sizes[14] = 2048  # threads a block
    with pytest.raises((KernelError, fastvoc.errors.ConfigError), match="wavenet_generate"):
        plan.run(start(plan, 1), [3], moved(job_of(weights, 1, 3)[0]))
    test_in_a_graph()


def test_a_model_on_the_gpu():
    model, mel = test_cuda_wavenet.model_of(speakers=True), test_cuda_wavenet.mel_of(2, 20)
    theirs = model.infer(mel, [2, 0], seed=3, forced=None)
    ours = model.cuda().infer(mel.cuda(), [2, 0], seed=3)
    assert ours.is_cuda and (ours.cpu()[:, :40] - theirs[:, :40]).abs().max() < 1e-3
