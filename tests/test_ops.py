"""Every operator × backend × case × dtype × instruction set: no further from exact than twice what plain torch is.

There is no table of tolerances. Cases and references come from the operator records, so a new operator is tested the
moment its file exists. After that: gradients, tracing, odd inputs, threads, elementary functions, the edges of memory.
"""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
import torch

import fastvoc
import fastvoc.ops  # registers every operator
from fastvoc import _C, _op
from fastvoc._op import OPS, Op
from fastvoc.errors import BackendUnavailableError, ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.ops.gated_activation import gated_activation, gated_activation_reference
from tests.devices import ISAS, as_double, device_of, dtypes_of, isas_of, running_on, threads

CALLABLE = [op for op in OPS.values() if isinstance(op, Op)]  # a PlanOp has tests of its own
PARITY = [
    pytest.param(op, backend, case, dtype, isa, id=f"{op.name}-{backend}-{label}-{str(dtype)[6:]}-{isa}")
    for op in CALLABLE
    for backend in op.backends if backend != "reference"
    for label, case in op.cases.items()
    for dtype in dtypes_of(backend, op)
    for isa in isas_of(backend, dtype, case)
]
SMALL = [pytest.param(op, op.cases["ragged"], id=op.name) for op in CALLABLE]
DOUBLES = {"dtype": torch.float64, "requires_grad": True}


@pytest.fixture(params=ISAS)
def isa(request):
    with running_on(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def two_threads():
    with threads(2):
        yield


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def on_each_tensor(args, change):
    return [change(a) if isinstance(a, torch.Tensor) else a for a in args]


def worst(ours, exact):
    return float((ours - exact).abs().max())


# ---- parity ----------------------------------------------------------------------------------------------------------


def test_something_is_tested():
    fast = {op.name for op in CALLABLE if any(dtypes_of(name, op) for name in set(op.backends) - {"reference"})}
    assert {p.values[0].name for p in PARITY} == fast > set()  # an empty list would pass by doing nothing


@lru_cache(maxsize=1)  # the instruction sets of a case come one after the other
def measured(op, case, dtype, device):
    """Arguments; exact outputs; and how far from those an output may be."""
    args = op.make_args(case, dtype, device, seed=0)
    exacts = outputs(op.reference(*as_double(args)))
    theirs = outputs(op.reference(*args))
    # Twice, as FlashAttention does. One rounding of the output type is always allowed.
    eps = torch.finfo(dtype).eps
    return args, exacts, [2 * worst(y, z) + eps * float(z.abs().max()) for y, z in zip(theirs, exacts, strict=True)]


@pytest.mark.parametrize(("op", "backend", "case", "dtype", "isa"), PARITY)
def test_as_exact_as_torch(op, backend, case, dtype, isa):
    args, exacts, allowed = measured(op, case, dtype, device_of(backend))
    with fastvoc.backend(backend), running_on(isa):
        ours = outputs(op(*args))
    for y, exact, limit in zip(ours, exacts, allowed, strict=True):
        assert y.dtype == dtype and y.shape == exact.shape
        assert y.isfinite().all() and (y.numel() == 1 or y.std() > 0)
        # Half is not zero, or as much as can be: a tap that lies outside a short signal has no gradient
        assert exact.any() and (y != 0).float().mean() >= min(0.5, 0.9 * float((exact != 0).float().mean()))
        assert worst(y, exact) <= limit


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_the_comparison_notices_a_wrong_input(op, case):
    args = op.make_args(case, torch.float32, "cpu")
    exact = outputs(op.reference(*as_double(args)))[0]
    args[0].view(-1)[:8] += 0.5  # eight, since one alone may be where the gate is saturated
    floor = torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert worst(outputs(op(*args))[0], exact) > 100 * floor


def test_thread_counts_agree(isa):
    args = OPS["gated_activation"].make_args((1, 64, 1301), torch.float32, "cpu")
    one, *others = [OPS["gated_activation"](*args) for n in (1, 2, 3) if fastvoc.set_num_threads(n) is None]
    assert all(torch.equal(one, y) for y in others)


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_are_the_references(isa):
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 7, 101, generator=rng).mul(2).requires_grad_() for _ in range(2))
    dy = torch.randn(a.shape, generator=rng)
    ours = torch.autograd.grad(gated_activation(a, b), (a, b), dy)
    theirs = torch.autograd.grad(gated_activation_reference(a, b), (a, b), dy)
    doubles = [t.detach().double().requires_grad_() for t in (a, b)]
    exact = torch.autograd.grad(gated_activation_reference(*doubles), doubles, dy.double())
    for x, y, z in zip(ours, theirs, exact, strict=True):
        assert worst(x, z) <= 3 * worst(y, z) + torch.finfo(torch.float32).eps * float(z.abs().max())


def test_gradient_of_one_input_only():
    a, b = torch.randn(5, requires_grad=True), torch.randn(5)
    gated_activation(a, b).sum().backward()
    want = torch.sigmoid(b) * (1 - torch.tanh(a.detach()) ** 2)
    assert torch.allclose(a.grad, want, atol=1e-6) and b.grad is None


def test_gradient_of_nothing():
    a = torch.zeros(0, 3, requires_grad=True)
    gated_activation(a, a).sum().backward()
    assert a.grad.shape == (0, 3)


# ---- tracing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_opcheck(op, case):
    # Without requires_grad: autograd lives outside the operator
    name = getattr(torch.ops.fastvoc, op.name).default
    torch.library.opcheck(name, op.make_args(case, torch.float32, "cpu"), test_utils=(
        "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_meta_and_fake_tensors_have_the_shapes(op, case):
    args = op.make_args(case, torch.float32, "cpu")
    want = [y.shape for y in outputs(op(*args))]
    assert [y.shape for y in outputs(op(*on_each_tensor(args, lambda a: a.to("meta"))))] == want
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = outputs(op(*on_each_tensor(args, mode.from_tensor)))
    assert [y.shape for y in fakes] == want and all(y.device.type == "cpu" for y in fakes)


@pytest.mark.slow
def test_compiled_by_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: gated_activation(a + 1, b) * 2, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for T in (33, 64):
            a, b = torch.randn(2, 3, T), torch.randn(2, 3, T)
            assert torch.allclose(compiled(a, b), gated_activation(a + 1, b) * 2, atol=1e-6)


# ---- odd inputs ------------------------------------------------------------------------------------------------------


def test_strided_expanded_misaligned_and_empty(isa):
    base = torch.randn(6, 10, 22)
    odd = torch.empty(257)[1:]  # 4 bytes off any vector boundary
    for a in (
        base[::2, 1:7, ::3], base.transpose(0, 2), torch.randn(1, 5, 1).expand(4, 5, 6), torch.tensor(0.3),
        odd.copy_(torch.randn(256)), torch.zeros(0, 4, 3), torch.zeros(3, 0), base.flip(1),
    ):
        b = torch.randn(a.shape)
        y = gated_activation(a, b)
        assert y.shape == a.shape and torch.allclose(y, gated_activation_reference(a, b), atol=1e-6)


def test_does_not_write_to_its_inputs(isa):
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    copies = a.clone(), b.clone()
    gated_activation(a, b)
    assert torch.equal(a, copies[0]) and torch.equal(b, copies[1])


def test_errors():
    x = torch.zeros(2, 3)
    with pytest.raises(DTypeError, match=r"a is torch.float32 but b is torch.float16.*\.to\("):
        gated_activation(x, x.half())
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(DTypeError, match=f"a is {dtype}, expected a floating point"):
            gated_activation(x.to(dtype), x.to(dtype))
    with pytest.raises(ShapeError, match=r"a is \(2, 3\) but b is \(3, 2\)"):
        gated_activation(x, x.t())
    with pytest.raises(DeviceError, match=r"a is on cpu but b is on meta.*device"):
        gated_activation(x, x.to("meta"))


# ---- backends --------------------------------------------------------------------------------------------------------


def test_a_forced_backend_does_not_fall_back():
    x = torch.zeros(2, 3, dtype=torch.float64)
    with fastvoc.backend("cpu"), pytest.raises(BackendUnavailableError, match="'cpu' declined: float32"):
        gated_activation(x, x)
    with fastvoc.backend("cuda"), pytest.raises(BackendUnavailableError, match="'cuda' declined: "):
        gated_activation(x.float(), x.float())
    with fastvoc.backend("reference"):
        assert torch.equal(gated_activation(x, x), gated_activation_reference(x, x))
    assert gated_activation(x, x).dtype == torch.float64


def test_backends_nest_and_end():
    with fastvoc.backend("cpu"):
        with pytest.raises(ZeroDivisionError), fastvoc.backend("reference"):
            assert _op.forced_backend() == "reference"
            raise ZeroDivisionError
        assert _op.forced_backend() == "cpu"
    assert _op.forced_backend() is None
    with pytest.raises(ConfigError, match="unknown backend 'gpu'; known are"), fastvoc.backend("gpu"):
        pass


def test_a_decline_is_said_once(caplog):
    _op._say_once.cache_clear()
    x = torch.zeros(3, dtype=torch.float64)
    with caplog.at_level("WARNING", "fastvoc"):
        gated_activation(x, x), gated_activation(x, x)
    assert [r.message for r in caplog.records] == [
        "fastvoc.gated_activation: cpu declined (float32 on the CPU only); trying the next backend"
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_goes_to_the_reference(dtype):
    a, b = torch.randn(3, 40).to(dtype), torch.randn(3, 40).to(dtype)
    assert torch.equal(gated_activation(a, b), gated_activation_reference(a, b))


def test_settings_are_checked():
    before = fastvoc.cpu_isa()
    with pytest.raises(ConfigError, match="unknown instruction set 'mmx'; known are.*baseline"):
        fastvoc.set_cpu_isa("mmx")
    for name, supported, _, reason in _C.cpu_isas():
        if not supported:
            with pytest.raises(ConfigError, match=f"cannot run {name}: {reason}"):
                fastvoc.set_cpu_isa(name)
    assert fastvoc.cpu_isa() == before
    for n in (0, -1, 1025):
        with pytest.raises(ConfigError, match=f"got {n}"):
            fastvoc.set_num_threads(n)
    assert fastvoc.get_num_threads() == 2


def test_environment():
    code = """
        import fastvoc
        from fastvoc import _op
        assert (fastvoc.cpu_isa(), fastvoc.get_num_threads(), _op.forced_backend()) == ("baseline", 3, "reference")
    """
    run_python(code, FASTVOC_CPU_ISA="baseline", FASTVOC_NUM_THREADS="3", FASTVOC_BACKEND="reference")


# ---- threads and processes -------------------------------------------------------------------------------------------


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_eight_threads_at_once():
    work = [OPS["gated_activation"].make_args((1, 8, 4096 + 7 * i), torch.float32, "cpu", seed=i) for i in range(8)]
    want = [gated_activation(*args) for args in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for y, z in zip(pool.map(lambda args: gated_activation(*args), work), want):
                assert torch.equal(y, z)


def test_after_fork():
    run_python("""
        import os, torch, fastvoc
        from fastvoc.ops.gated_activation import gated_activation
        torch.set_num_threads(1)
        fastvoc.set_num_threads(2)
        a = torch.randn(64, 2000)
        y = gated_activation(a, a)  # makes the pool, whose threads the child does not inherit
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(gated_activation(a, a), y) else 3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert torch.equal(gated_activation(a, a), y)
    """)


# ---- elementary functions --------------------------------------------------------------------------------------------

EXP, TANH, SIGMOID = 0, 1, 2


def elementary(function, x):
    x = np.ascontiguousarray(x, np.float32)
    n = -(-len(x) // 16) * 16
    padded, y = np.resize(x, n), np.empty(n, np.float32)
    _C.elementary_cpu(function, padded.ctypes.data, y.ctypes.data, n)
    return y[: len(x)]


def floats_between(low, high, stride):
    """Every stride-th float32 of [low, high], by bit pattern; low < 0 < high."""
    bits = [np.arange(0, np.float32(abs(end)).view(np.uint32), stride, np.uint32) for end in (high, low)]
    return np.concatenate([bits[0].view(np.float32), -bits[1].view(np.float32), np.float32([low, high])])


def ulps(y, exact):
    return np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize(
    ("function", "low", "high", "exact", "claim"),
    [
        pytest.param(EXP, -87, 88.3, np.exp, 1.5, id="exp"),
        pytest.param(TANH, -1e30, 1e30, np.tanh, 2.0, id="tanh"),
        pytest.param(SIGMOID, -87, 1e30, lambda x: 1 / (1 + np.exp(-x)), 3.5, id="sigmoid"),
    ],
)
def test_elementary_functions_in_ulp(isa, function, low, high, exact, claim):
    x = floats_between(low, high, 3001)
    y, want = elementary(function, x), exact(x.astype(np.float64))
    assert len(x) > 500_000 and len(np.unique(y[::7])) > 1000
    assert ulps(y, want).max() <= claim


def test_gate_in_ulp(isa):
    rng = np.random.default_rng(0)
    a = np.float32(rng.standard_normal(400_000) * 10.0 ** rng.uniform(-6, 1.3, 400_000))
    b = np.float32(rng.uniform(-60, 90, len(a)))
    y = gated_activation(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    want = np.tanh(a.astype(np.float64)) / (1 + np.exp(-b.astype(np.float64)))
    assert ulps(y, want).max() <= 6.5


def test_elementary_functions_at_the_ends(isa):
    inf, nan = np.inf, np.nan
    assert all(np.isnan(elementary(function, [nan]))[0] for function in (EXP, TANH, SIGMOID))
    low, high, one = elementary(EXP, [-inf, inf, 0])
    assert 0 <= low < 2e-38 and high > 2e38 and np.isfinite(high) and one == 1
    assert list(elementary(TANH, [-inf, inf, 1e30, -1e30])) == [-1, 1, 1, -1]
    tiny = np.float32([0, 1e-38, -1e-30, 1e-20])
    assert np.array_equal(elementary(TANH, tiny), tiny)
    low, high, half = elementary(SIGMOID, [-inf, inf, 0])
    assert 0 <= low < 2e-38 and high == 1 and half == 0.5


def test_gate_at_the_ends(isa):
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([nan, 0.5, nan, inf, -inf, 1e30, -1e30, 0.3, 0.3])
    b = torch.tensor([1.0, nan, nan, 0.0, 0.0, 1e30, -1e30, inf, -inf])
    y = gated_activation(a, b)
    assert y[:3].isnan().all() and torch.equal(y[3:6], torch.tensor([0.5, -0.5, 1.0]))
    assert y[6].abs() < 1e-25 and torch.isclose(y[7], torch.tensor(0.3).tanh()) and y[8].abs() < 1e-25
    only_one = torch.zeros(33)
    only_one[17] = nan  # does not leak into its neighbours
    assert torch.equal(gated_activation(only_one, torch.zeros(33)).isnan(), only_one.isnan())


# ---- the edges of memory ---------------------------------------------------------------------------------------------


def test_reads_and_writes_nothing_outside():
    """Arrays at the very end and the very start of a page whose neighbours may not be touched."""
    run_python("""
        import os
        import numpy as np, fastvoc
        from fastvoc import _C
        from tests.guards import PAGE, Guards
        fastvoc.set_num_threads(1)
        guards = Guards()
        pages = [guards.bytes(PAGE, False).view(np.float32) for _ in range(5)]
        rng = np.random.default_rng(0)
        isas = [name for name, supported, *_ in _C.cpu_isas() if supported]
        for isa, n in [(isa, n) for isa in isas for n in range(1, 2 * 16 + 2)]:
            fastvoc.set_cpu_isa(isa)
            for at_end in (False, True):
                part = [p[len(p) - n:] if at_end else p[:n] for p in pages]
                for x in part:
                    x[:] = rng.standard_normal(n)
                a, b, y, da, db = part
                at = [x.ctypes.data for x in part]
                _C.gated_activation_cpu(at[0], at[1], at[2], n)
                want = np.tanh(a) / (1 + np.exp(-b))
                assert np.abs(y - want).max() < 1e-6, (isa, n)
                _C.gated_activation_backward_cpu(at[2], at[0], at[1], at[3], at[4], n)
                assert np.abs(da - y / (1 + np.exp(-b)) * (1 - np.tanh(a) ** 2)).max() < 1e-6, (isa, n)
        os._exit(0)
    """)


def test_the_guards_guard():
    code = """
        import ctypes, mmap
        page = mmap.PAGESIZE
        memory = mmap.mmap(-1, 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.mprotect(start + page, page, 0)
        from fastvoc import _C
        import fastvoc
        fastvoc.set_num_threads(1)
        _C.gated_activation_cpu(start + page - 8, start, start, 3)
    """
    with pytest.raises(AssertionError, match="exit -11"):
        run_python(code)
