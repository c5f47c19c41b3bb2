"""What a server does to a process, done to the CPU plans: forks, threads that come and go, Ctrl-C, denormals, limits."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import fastvoc
from fastvoc import _cpus
from fastvoc._torch_threads import callers_torch_threads, one_torch_thread
from fastvoc.demo.random_weights import random_model
from fastvoc.models.wavenet_streams import generate, samples_at_once
from fastvoc.ops.gated_residual_stack import CpuPlan as StackPlan
from fastvoc.ops.wavenet_generate import CpuPlan
from tests.devices import ISAS, running_on
from tests.test_gated_residual_stack import CASES, inputs_of
from tests.test_gated_residual_stack import weights_of as stack_weights_of
from tests.test_ops import run_python
from tests.test_wavenet_generate import job_of, mel_of, model_of, start, weights_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def engine(threads, n=60, n_streams=1):
    """-> a function that generates, anew with each call."""
    weights = weights_of()
    plan, cond = CpuPlan(weights, threads=threads), job_of(weights, n_streams, n)[0]
    return lambda: torch.stack(plan.run(start(plan, n_streams), [n] * n_streams, cond)[0])


def stack(threads):
    weights, (x, cond, step) = stack_weights_of(CASES["ragged"]), inputs_of(CASES["ragged"])
    plan = StackPlan(weights, threads=threads)
    return lambda: plan.run(x, cond, step)


# ---- threads and processes -------------------------------------------------------------------------------------------


def test_teams_of_several_callers_run_side_by_side():
    """Six Python threads with plans of 1 to 4 threads each; every result is that of running alone."""
    work = [make(threads) for threads in (1, 2, 3, 4) for make in (engine, stack)]
    want = [run() for run in work]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(lambda run: run(), work), want))


def test_a_long_team_holds_up_no_short_one():
    """While one caller's team of two works, another's does its job many times over."""
    long, short = engine(2, n=40_000), engine(2, n=2)
    short()
    busy = threading.Thread(target=long)
    busy.start()
    done = 0
    while busy.is_alive():
        short()
        done += busy.is_alive()
    assert done > 3


@pytest.mark.parametrize("team", [2, 3])  # in a fresh thread torch has as many threads as cores: 2 may be its own team
def test_python_threads_that_come_and_go_leave_nothing_behind(team):
    run = engine(team)
    want = run()
    wrong = []

    def once():
        if not torch.equal(run(), want):
            wrong.append(1)

    def wave():
        threads = [threading.Thread(target=once) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    wave()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(30):
        wave()
    # at most four teams of three at once: two of each are the pool's; OpenMP's end with their caller
    assert not wrong and len(os.listdir("/proc/self/task")) <= max(before, 1) + 8


def test_after_fork_also_while_teams_run():
    """Children of a process whose other threads are in mid-run, in whatever state its locks are."""
    run_python("""
        import os, signal, threading, torch
        torch.set_num_threads(1)
        from tests.test_robustness import engine, stack
        runs = [engine(2), stack(2), engine(1), stack(3)]
        want = [run() for run in runs]
        stop = threading.Event()

        def busy(run):
            while not stop.is_set():
                run()

        threads = [threading.Thread(target=busy, args=(run,)) for run in runs[:2]]
        for t in threads:
            t.start()
        for _ in range(15):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # a child that waits for a thread it does not have
                os._exit(0 if all(torch.equal(run(), y) for run, y in zip(runs, want)) else 3)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
        stop.set()
        for t in threads:
            t.join()
        assert all(torch.equal(run(), y) for run, y in zip(runs, want))
    """)


def test_operators_and_plans_take_the_threads_that_torch_has():
    """Two sets of threads would keep each other off the cores. A child, which has none of torch's, uses its own."""
    run_python("""
        import os, signal, torch
        import fastvoc
        from fastvoc.ops.gated_activation import gated_activation
        from tests.test_robustness import engine, stack

        def tasks():
            return len(os.listdir("/proc/self/task"))

        torch.set_num_threads(2)
        fastvoc.set_num_threads(2)
        a, b = torch.randn(2, 1 << 20)
        a + b  # starts torch's threads
        before = tasks()
        runs = [lambda: gated_activation(a, b), engine(2), stack(2)]
        want = [run() for run in runs]
        assert tasks() == before, "threads of our own beside torch's"
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            same = [run().numpy().tobytes() == y.numpy().tobytes() for run, y in zip(runs, want)]  # torch itself would hang
            os._exit(0 if all(same) and tasks() == 2 else 3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        before = tasks()  # OpenBLAS ends its own at a fork
        fastvoc.set_num_threads(3)  # more than torch has
        assert torch.equal(runs[0](), want[0]) and tasks() == before + 2
        torch.set_num_threads(1)  # as inside `infer`
        assert all(torch.equal(run(), y) for run, y in zip(runs, want))
    """)


def test_a_team_on_one_core():
    """Members that never run at once: they take over each other's share of a layer, and sleep where they would spin."""
    run_python("""
        import os, torch
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from tests.test_gated_residual_stack import inputs_of, weights_of
        from tests.test_robustness import StackPlan, engine
        case = (6, 24, 20, 12, 16, 3, (1, 2, 4, 8, 16, 32), False, True, False, 2, 1499)
        weights, inputs = weights_of(case), inputs_of(case)
        want = StackPlan(weights, threads=1).run(*inputs)
        for threads in (2, 5):
            for _ in range(5):
                assert torch.equal(StackPlan(weights, threads=threads).run(*inputs), want)
        assert torch.equal(engine(4)(), engine(1)())
    """)


def test_threads_that_cannot_be_started():
    """No room for their stacks: an error before any work, and the next call with fewer threads works."""
    run_python("""
        import resource, torch
        torch.set_num_threads(1)
        from tests.test_robustness import engine
        two, many = engine(2), engine(40)
        want = two()
        used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), before[1]))
        try:
            many()
        except RuntimeError as error:
            assert "cannot start 40 threads" in str(error), error
        else:
            raise AssertionError("no error")
        assert torch.equal(two(), want)
        resource.setrlimit(resource.RLIMIT_AS, before)
        assert torch.equal(many(), want)
    """)


def test_torch_stays_on_the_callers_thread_while_a_model_works():
    """Its other threads would spin on our cores. Those of other Python threads, and ours afterwards, are as before."""
    model = random_model("parallel_wavegan", layers=4, stacks=2, residual_channels=8, gate_channels=16, skip_channels=8)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with one_torch_thread():
            seen.append(torch.get_num_threads())
            with callers_torch_threads():
                seen.append(torch.get_num_threads())
            with ThreadPoolExecutor(1) as pool:
                seen.append(pool.submit(torch.get_num_threads).result())
        with fastvoc.backend("reference"), one_torch_thread():
            seen.append(torch.get_num_threads())
        with pytest.raises(KeyboardInterrupt), one_torch_thread():
            raise KeyboardInterrupt
        seen.append(torch.get_num_threads())
        assert seen == [1, 3, 3, 3, 3]
        watched = model.stack.infer
        model.stack.infer = lambda *args, **how: (seen.append(torch.get_num_threads()), watched(*args, **how))[1]
        model.infer(torch.randn(1, 80, 4), seed=1)
        assert seen[5:] == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ---- how many threads ------------------------------------------------------------------------------------------------


def test_cpus_that_the_affinity_leaves():
    run_python("""
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import fastvoc
        assert fastvoc.get_num_threads() == 1, fastvoc.get_num_threads()
    """, OMP_NUM_THREADS="7")  # fmt: skip


@pytest.mark.parametrize(
    "files, want",
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 1", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/gone/in/this/namespace\n", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "rubbish"}, None),
    ],
    ids=["no cgroups", "v2 no limit", "v2", "v2 parent's", "v2 in a container", "v1", "unreadable"],
)  # fmt: skip
def test_cpus_that_the_cgroup_leaves(tmp_path, files, want):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cpus.quota(tmp_path) == want
    assert _cpus.available(tmp_path) == min(len(os.sched_getaffinity(0)), 10**6 if want is None else max(1, int(want)))


# ---- interrupts ------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_long_generation():
    """It stops soon, the stream stands where it stood, and goes on to the samples of an undisturbed one."""
    model, mel = model_of(), mel_of(1, 60_000)[0]
    stream, whole = model.stream(seed=1, threads=2), model.stream(seed=1)
    for s in (stream, whole):
        s.push(mel, last=True)
    first = generate([stream], [50])[0][0]
    rung = []

    def ring(*_):
        rung.append(time.monotonic())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            generate([stream])
        took = time.monotonic() - rung[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert took < 2
    again = generate([stream], [500])[0][0]
    assert torch.equal(torch.cat([first, again]), generate([whole], [550])[0][0])


@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_between_calls_of_the_engine(monkeypatch, at):
    """The same at a chosen point, several streams at once: none is ahead of the others."""
    model = model_of()
    streams, undisturbed = ([model.stream(seed=1, stream=i) for i in range(3)] for _ in range(2))
    for s in (*streams, *undisturbed):
        s.push(mel_of(1, 40)[0], last=True)
    monkeypatch.setattr("fastvoc.models.wavenet_streams.CHUNK_SAMPLES", 64)
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(streams, progress=stop)
    assert calls[-1] == 64 * at
    for a, b in zip(generate(streams)[0], generate(undisturbed)[0]):
        assert torch.equal(a, b) and len(a) == 240


def test_one_call_of_the_engine_is_short_for_any_model_and_company():
    small = CpuPlan(weights_of())
    assert samples_at_once(small, 1) == 4096
    big = CpuPlan(weights_of(residual=256, gate=512, skip=256, kernel=3, dilations=(1,) * 30))
    w = big.weights
    each = sum(m.numel() for m in (w.w_in, w.w_cond, w.w_res, w.w_skip, w.w_hidden, w.w_logits))
    for n_streams in (1, 10, 64):
        assert 16 <= samples_at_once(big, n_streams) <= max(16, (4 << 30) / (each * n_streams))
    assert samples_at_once(big, 64) < samples_at_once(big, 10) < samples_at_once(big, 1) < 4096


# ---- denormals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_denormals_count_as_zero_and_the_callers_mode_stays(precision, threads):
    """Of every instruction set: conditioning, weights and state. A denormal that is not flushed would change a bit."""
    weights = weights_of(dilations=(1, 2, 4, 8))
    tiny = lambda t: torch.full_like(t, 3e-39)
    cond, noise, _ = job_of(weights, 3, 40)
    inputs = {
        "conditioning": (weights, weights, [tiny(c) for c in cond], [c * 0 for c in cond]),
        "weights": (replace(weights, w_res=tiny(weights.w_res)), replace(weights, w_res=weights.w_res * 0), cond, cond),
    }
    for isa in ISAS:
        with running_on(isa):
            for name, (w_tiny, w_zero, c_tiny, c_zero) in inputs.items():
                made = []
                for w, c in ((w_tiny, c_tiny), (w_zero, c_zero)):
                    plan = CpuPlan(w, precision, threads)
                    made.append(torch.stack(plan.run(start(plan, 3), [40] * 3, c, noise=noise)[0]))
                assert torch.equal(*made) and made[0].std() > 0.05, (isa, name)
            assert float(torch.tensor(1e-40) * 1) != 0
