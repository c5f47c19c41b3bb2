"""The timer: it refuses what disagrees, repeats what was disturbed, and writes whole files or none."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import fastvoc
from benchmarks import __main__ as command
from benchmarks import (
    bench_ops,
    bench_quality,
    bench_scaling,
    bench_serving,
    bench_streams,
    bench_training,
    bench_wavenet,
    ceilings,
    record,
    timer,
    training_peers,
)
from benchmarks.timer import Contender, DisagreementError, allclose, interleave
from fastvoc._op import OPS
from fastvoc.errors import BackendUnavailableError
from fastvoc.layers import GatedResidualStack
from fastvoc.ops.gated_residual import CASES, gated_residual_fwd
from fastvoc.report.results import read_results

ROOT = Path(__file__).parent.parent
QUICK = dict(rounds=3, min_time=0)


def spin(seconds: float) -> None:
    """Wants `seconds` of CPU time, however long it waits for them."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def quiet_machine(monkeypatch):
    """Nobody else uses the machine: only a contender's own waiting is left to see."""
    monkeypatch.setattr(timer, "_busy_seconds", time.process_time)


# ---- check before time -----------------------------------------------------------------------------------------------


WRONG = [torch.ones(3) * 1.01, torch.ones(4), torch.full((3,), float("nan")), (torch.ones(3),) * 2]


@pytest.mark.parametrize("wrong", WRONG)
def test_who_disagrees_is_refused_before_anything_is_timed(wrong, monkeypatch):
    monkeypatch.setattr(timer, "_run", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(timer, "_calibrated", lambda *_: pytest.fail("timed"))
    with pytest.raises((DisagreementError, ValueError), match="liar disagrees with honest|shorter|longer"):
        interleave({"honest": lambda: torch.ones(3), "liar": lambda: wrong})


def test_the_benchmarks_own_rule_decides():
    check = lambda output, first: "too large" if output > first else None
    assert set(interleave({"a": lambda: 2, "b": lambda: 1}, check=check, **QUICK)) == {"a", "b"}
    with pytest.raises(DisagreementError, match="c disagrees with a: too large"):
        interleave({"a": lambda: 2, "c": lambda: 3}, check=check, **QUICK)


def test_the_first_contender_is_checked_too():
    with pytest.raises(DisagreementError, match="a disagrees with a: wrong"):
        interleave({"a": lambda: 1}, check=lambda output, first: "wrong", **QUICK)


def test_what_is_compared_may_be_another_output():
    same = lambda: torch.zeros(2)
    random = Contender(lambda: torch.rand(2), output=same)
    interleave({"a": random, "b": random}, **QUICK)


def test_allclose_says_how_far():
    assert "0.5" in allclose()(torch.zeros(2), torch.tensor([0, 0.5]))
    assert allclose(atol=1)(torch.zeros(2), torch.tensor([0, 0.5])) is None


def test_op_rule_notices_a_wrong_kernel():
    op = OPS["gated_activation"]
    args = op.make_args(op.cases["ragged"], torch.float32, "cpu")
    check, plain = bench_ops.accuracy_rule(op, args), op.reference(*args)
    assert check(plain, plain) is None
    assert "error" in check(plain * (1 + 1e-5), plain)
    assert "error" in check(plain * float("nan"), plain)
    assert "float64" in check(plain.double(), plain)


def test_a_forced_backend_that_is_missing_is_not_timed_as_something_else():
    op = OPS["gated_activation"]
    args = op.make_args(op.cases["single"], torch.float64, "cpu")
    with bench_ops.forced("cpu", fastvoc.cpu_isa(), 1)(), pytest.raises(BackendUnavailableError, match="float32"):
        op(*args)


# ---- time ------------------------------------------------------------------------------------------------------------


def test_median_minimum_maximum_and_turns(monkeypatch):
    walls = {"a": iter([3.0, 1.0, 2.0]), "b": iter([10.0, 30.0, 20.0])}
    order = []

    def run(contender, calls, share_limit):
        name = contender.run()
        order.append(name)
        return next(walls[name]), 1.0, True

    monkeypatch.setattr(timer, "_run", run)
    times = interleave({name: lambda name=name: name for name in walls}, check=lambda *_: None, **QUICK)
    assert (times["a"].median, times["a"].min, times["a"].max) == (2, 1, 3)
    assert (times["b"].median, times["b"].min, times["b"].max) == (20, 10, 30)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert times["a"].disturbed == 0


def test_short_calls_are_repeated_and_counted():
    t = interleave({"a": lambda: None}, check=lambda *_: None, rounds=2, min_time=0.002)["a"]
    assert t.calls > 100 and 0 < t.median < 1e-5


def test_disturbed_rounds_are_repeated_and_recorded(monkeypatch):
    runs = iter([(5.0, False), (1.0, True), (1.0, True), (7.0, False), (6.0, False), (8.0, False)])
    monkeypatch.setattr(timer, "_run", lambda *_: (wall_alone := next(runs)) and (wall_alone[0], 1.0, wall_alone[1]))
    t = interleave({"a": lambda: 0}, rounds=3, min_time=0, retries=2)["a"]
    assert (t.disturbed, t.kept, t.max, t.median) == (4, 1, 6, 1)
    assert t.facts()["disturbed_rounds"] == 4 and t.facts()["disturbed_rounds_kept"] == 1


def test_a_waiting_run_is_disturbed(quiet_machine):
    slow = Contender(lambda: time.sleep(0.01))
    t = interleave({"a": slow}, rounds=2, min_time=0, retries=1, check=lambda *_: None)["a"]
    assert (t.disturbed, t.kept) == (4, 2) and t.cpu_per_wall < 0.5
    pair = Contender(slow.run, threads=2)  # whose waiting may be for each other
    assert interleave({"a": pair}, rounds=2, min_time=0, check=lambda *_: None)["a"].disturbed == 0


def test_a_busy_neighbour_is_noticed():
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        if timer._busy_seconds() is None:
            pytest.skip("no /proc/stat")
        wall, cpu, alone = timer._run(Contender(lambda: spin(0.3), threads=2), 1, 0.01)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert not alone and wall >= cpu * 0.9


def test_thread_and_isa_settings_are_restored():
    before = torch.get_num_threads(), fastvoc.get_num_threads(), fastvoc.cpu_isa()
    with bench_ops.forced("cpu", timer.real_isas()[0], 1)():
        assert (torch.get_num_threads(), fastvoc.get_num_threads(), fastvoc.cpu_isa()) == (1, 1, timer.real_isas()[0])
    assert (torch.get_num_threads(), fastvoc.get_num_threads(), fastvoc.cpu_isa()) == before


def test_bandwidths_are_positive():
    assert timer.copy_bandwidth(1, 0.01, 1 << 20) > 1e8
    assert timer.read_bandwidth(1, 1 << 20, 0.01) > 1e8
    assert timer.mac_peak(1, torch.float32, 0.01, 64) > 1e7


# ---- results ---------------------------------------------------------------------------------------------------------


def test_results_have_the_environment(tmp_path):
    path = tmp_path / "x.json"
    record.record("x", iter([{"rows": [{"contender": "a", "us": 1234.5}]}]), path, method="by hand")
    result = json.loads(path.read_text())
    assert result["rows"] == [{"contender": "a", "us": 1234.5}] and result["method"] == "by hand"
    needed = "date cpu cores caches isas isa threads fastvoc torch numpy python commit dirty".split()
    assert set(needed) <= set(result["environment"])
    assert os.uname().nodename not in path.read_text() or len(os.uname().nodename) < 4


def test_parts_are_joined_and_an_interrupted_run_leaves_what_it_has(tmp_path):
    path, facts = tmp_path / "x.json", {"report": {"title": "X", "curves": [1]}}

    def parts(stop):
        yield {"rows": [{"us": 1}], "sizes": {"a": 1}, "report": {"curves": [2]}}
        yield {"rows": [{"us": 2}], "sizes": {"b": 2}, "copy": 5}
        if stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.record("x", parts(True), path, **facts)
    left = json.loads(path.read_text())
    assert left["complete"] is False and left["rows"] == [{"us": 1}, {"us": 2}]
    assert left["sizes"] == {"a": 1, "b": 2} and left["copy"] == 5 and left["report"] == {"title": "X", "curves": [1, 2]}
    assert record.record("x", parts(False), path, **facts)["complete"] is True
    assert json.loads(path.read_text())["complete"] is True
    assert facts == {"report": {"title": "X", "curves": [1]}}  # a module's constants stay as they are


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    record.write({"us": 1}, path)
    before = path.read_text()
    with pytest.raises(TypeError):
        record.write({"us": object()}, path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.write({"us": 2}, path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_only_and_quick_leave_the_checked_in_results_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_ops, "run", lambda **how: iter([{"rows": [{"op": str(how["only"])}]}]))
    command.main(["ops", "--quick"])
    command.main(["ops", "--only", "gated"])
    assert not list(tmp_path.iterdir()) and "gated" in capsys.readouterr().out
    command.main(["ops"])
    assert [p.name for p in tmp_path.iterdir()] == ["ops-cpu.json"]


def test_one_benchmark_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fails(**_):
        raise DisagreementError("wrong")
        yield

    monkeypatch.setattr(command, "BENCHMARKS", {"ops": "", "wavenet": ""})
    monkeypatch.setattr(bench_ops, "run", fails)
    monkeypatch.setattr(bench_wavenet, "run", lambda **_: iter([{"rows": [{"size": "it ran"}]}]))
    with pytest.raises(SystemExit) as stopped:
        command.main(["all", "--quick"])
    assert stopped.value.code == "failed: ops" and "it ran" in capsys.readouterr().out


def test_a_cliff_is_found_and_a_slope_is_not():
    def row(size, us):
        return {"kernel": "k", "sweep": "length", "contender": "fastvoc", "precision": "fp32", "threads": 1, "size": size,
                "us": us, "us_min": us, "ns_per_unit": us / size * 1e3}  # fmt: skip

    assert bench_scaling.cliffs([row(n, 100 + n) for n in (1, 10, 1000, 2000)]) == []
    found = bench_scaling.cliffs([row(1000, 1000), row(1001, 3000), row(1002, 1002), row(4000, 9000)])
    rules = {(f["size"], f["rule"]): f for f in found}
    assert list(rules) == [(1001, "dearer a piece"), (1001, "padding would pay"), (4000, "dearer a piece")]
    assert rules[1001, "padding would pay"]["next_to"] == 1002 and rules[4000, "dearer a piece"]["factor"] == 2.25


def test_the_command_runs_and_writes_where_told(tmp_path, monkeypatch):
    # "single" and "ragged" only: what is tested is that every backend and instruction set is checked and timed
    monkeypatch.setattr(bench_ops, "QUICK", ("single", "ragged"))
    command.main(["ops", "--quick", "--threads", "1", "--out", str(tmp_path / "ops.json")])
    result = json.loads((tmp_path / "ops.json").read_text())
    names = {row["contender"] for row in result["rows"]}
    assert names == {"torch eager"} | {f"cpu {isa}" for isa in timer.real_isas()}
    assert {row["op"] for row in result["rows"]} == {op.name for op in bench_ops.callable_ops()}
    assert all(row["us_min"] <= row["us"] <= row["us_max"] and row["gb_per_s"] > 0 for row in result["rows"])
    assert result["quick"] is True and result["complete"] is True and result["copy_gb_per_s"]


@pytest.mark.parametrize("arguments", [["all", "--out", "x.json"], ["ops", "--threads", "0"], ["nothing"]])
def test_the_command_refuses_nonsense(arguments):
    with pytest.raises(SystemExit):
        command.main(arguments)


# ---- the other benchmarks, small -------------------------------------------------------------------------------------


def quick(name: str, tmp_path) -> dict:
    command.main([name, "--quick", "--threads", "1", "--out", str(tmp_path / "x.json")])
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["complete"] is True and result["method"]["work"] and read_results(tmp_path / "x.json").title
    return result


@pytest.mark.slow
def test_scaling(tmp_path):
    rows = quick("scaling", tmp_path)["rows"]
    sweeps = {(r["kernel"], r["sweep"]) for r in rows}
    assert sweeps == {(c["where"]["kernel"], c["where"]["sweep"]) for c in bench_scaling.REPORT["curves"]}
    assert all(r["us_min"] <= r["us"] <= r["us_max"] and r["ns_per_unit"] > 0 for r in rows)


@pytest.mark.slow
def test_roofline(tmp_path):
    result = quick("roofline", tmp_path)
    drawn = [p.name for p in (ROOT / "csrc" / "cpu").glob("*.cpp") if p.name != "kernels.cpp"]
    assert {r["family"] for r in result["rows"]} == {name.removesuffix(".cpp") for name in drawn}
    names = {c["name"].split(",")[0] for c in result["report"]["roofline"]["ceilings"]}
    assert names == {"fp32", "bf16", "int8", "L2", "L3", "memory"}
    for r in result["rows"]:
        assert r["of_bound"] == pytest.approx(r["gflop_per_s"] / r["bound"], rel=1e-2)


@pytest.mark.slow
def test_quality(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_quality, "LIMITS_DB", bench_quality.LIMITS_DB | {"bf16": -300.0})
    with pytest.raises(DisagreementError, match="bf16"):
        quick("quality", tmp_path)
    monkeypatch.undo()
    rows = quick("quality", tmp_path)["rows"]
    error = {r["precision"]: r for r in rows if r["part"] == "error" and r["model"] == "wavenet"}
    assert error["fp32"]["error_db"] < -100 < error["bf16"]["error_db"] < error["int8"]["error_db"]
    assert error["fp32"]["divergence_nats"] < error["bf16"]["divergence_nats"] < error["int8"]["divergence_nats"] < 0.02
    sound = [r for r in rows if r["part"] == "sound"]
    assert {r["precision"] for r in sound} == set(error) and all(0 < r["log_mel_distance"] < 20 for r in sound)


@pytest.mark.slow
def test_streams_and_serving(tmp_path):
    result = quick("streams", tmp_path)
    assert all(r["p50_ms"] <= r["p99_ms"] <= r["longest_ms"] for r in result["rows"]) and len(result["held"]) == 3
    rows = quick("serving", tmp_path)["rows"]
    assert {r["batch"] for r in rows} == {1, 2} and all(r["p50_ms"] <= r["p99_ms"] for r in rows)


@pytest.mark.slow
def test_training(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_training, "QUICK", ("WaveGlow",))
    result = quick("training", tmp_path)
    rows = {(r["contender"], r["precision"]): r for r in result["rows"]}
    peers = {("PyTorch eager", "fp32"), ("PyTorch", "bf16")}
    assert set(rows) == peers | {("fastvoc", "fp32"), ("fastvoc", "bf16"), ("fastvoc memory-efficient", "fp32")}
    assert all(r["ms_min"] <= r["ms"] <= r["ms_max"] and r["step_mb"] != 0 for r in rows.values())
    assert rows["fastvoc", "fp32"]["gradient_error"] < 1e-4 < rows["fastvoc", "bf16"]["gradient_error"] < 0.5
    assert any("torch.compile" in what for what in result["skipped"])


def test_a_training_step_that_computes_something_else_is_refused(monkeypatch):
    real = GatedResidualStack.forward
    monkeypatch.setattr(GatedResidualStack, "forward", lambda *args: real(*args) * 1.1)
    with pytest.raises(DisagreementError, match="WaveGlow: fastvoc: loss off by"):
        bench_training.bench("WaveGlow", 1, True, False)


@pytest.mark.parametrize("label", ["ragged", "causal, kernel 5", "no conditioning"])
def test_the_plain_training_layer_is_the_layer(label):
    case = CASES[label]
    x, w_in, b_in, w_out, b_out, cond, step, *options = gated_residual_fwd.make_args(case, torch.float64, "cpu")
    turned = x.transpose(1, 2), w_in, b_in, w_out[:, :, None], b_out, None if cond is None else cond.transpose(1, 2), step
    want = gated_residual_fwd.reference(x, w_in, b_in, w_out, b_out, cond, step, *options)
    for y, z in zip(training_peers.plain_layer(*turned, *options), want, strict=False):
        assert torch.allclose(y.transpose(1, 2), z, rtol=0, atol=1e-12)


def test_nothing_of_ours_is_left_in_the_plain_models():
    stack = GatedResidualStack(6, 10, 4, 5, 3, [1, 2])
    x, cond = torch.randn(2, 50, 6), torch.randn(2, 50, 5)
    want = stack(x, cond)
    with training_peers.plain_layers(), patch("fastvoc.layers.gated_residual_stack.gated_residual", None):
        assert torch.allclose(stack(x, cond), want, atol=1e-5)


def test_a_stream_that_is_changed_by_its_company_is_refused(monkeypatch):
    model = bench_wavenet.tamed(fastvoc.WaveNet(**bench_wavenet.TINY["tiny"]).eval())
    real = bench_streams.generate

    def wrong(streams):
        waves, given = real(streams)
        return [w + len(streams) for w in waves], given

    bench_streams.check(model, 16000, "fp32", 1)
    monkeypatch.setattr(bench_streams, "generate", wrong)
    with pytest.raises(DisagreementError, match="other samples than alone"):
        bench_streams.check(model, 16000, "fp32", 1)


def test_memory_of_a_call():
    grown = bench_serving.peak_memory(lambda: torch.ones(16 << 20))
    if grown is None:
        pytest.skip("the system does not tell")
    assert 48 << 20 < grown < 160 << 20


def test_ceilings_with_and_without_a_compiler(monkeypatch):
    for lib in (ceilings.library(), None):
        assert ceilings.operations_per_s("fp32", 1, 0.01, lib) > 1e8
        assert ceilings.read_bytes_per_s(1 << 20, 2, 0.01, lib) > 1e8
    assert ceilings.operations_per_s("int8", 1, 0.01, None) is None
    monkeypatch.setattr(ceilings.shutil, "which", lambda name: None)
    assert ceilings.library() is None


def test_stack_and_models(tmp_path):
    """Ours and PyTorch eager are there, each checked; what is left out says why."""
    for name in ("stack", "models"):
        result = quick(name, tmp_path)
        who = {(r["contender"], r["precision"]) for r in result["rows"]}
        assert {("fastvoc", "fp32"), ("fastvoc", "bf16"), ("PyTorch eager", "fp32")} <= who
        assert result["complete"] is True and all(result["skipped"].values()) and all(r["rtf"] > 0 for r in result["rows"])
