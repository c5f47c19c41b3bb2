"""Operators, stacks and WaveNet on a GPU beside PyTorch eager and torch.compile: events, inputs in rotation, share of the floor.

    python -m benchmarks.bench_gpu [--out FILE] [--seconds 150]

A contender is first checked against float64 or the first one, then timed: the median of rounds in which all take turns.
Each call gets other inputs, together larger than L2. The floor is the larger of bytes over the copy bandwidth and
operations over the rate of a large matrix product, both measured here.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import fastvoc
from benchmarks.bench_stack import CASES, weights_of
from benchmarks.bench_wavenet import models
from benchmarks.gpu import card, commit
from benchmarks.stack_peers import ChannelsLastStack, EagerStack, PeerPlan
from fastvoc._op import OPS
from fastvoc.ops.gated_residual_stack_cuda import CudaPlan as CudaStack
from fastvoc.ops.wavenet_generate import ReferencePlan
from fastvoc.ops.wavenet_generate_cuda import CudaPlan as CudaWaveNet

OPERATORS = {
    "gated_activation": (24, 256, 2756), "gated_activation_backward": (24, 256, 2756), "affine_coupling": (24, 4, 27562),
    "affine_coupling_inverse": (24, 4, 27562), "affine_coupling_backward": (24, 4, 27562),
    "invertible_conv1x1": (24, 8, 27562), "invertible_conv1x1_backward": (24, 8, 27562),
}  # fmt: skip


def event_us(run, inputs: list, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(calls):
        run(*inputs[i % len(inputs)])
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / calls


def interleaved(contenders: dict, inputs: list, rounds: int = 7, budget_us: float = 20_000) -> dict[str, tuple]:
    """name -> (median, min, max) µs a call"""
    calls, times = {}, {name: [] for name in contenders}
    for name, run in contenders.items():
        event_us(run, inputs, 3)
        calls[name] = max(1, min(1000, int(budget_us / event_us(run, inputs, 3))))
    for r in range(rounds):
        names = list(contenders)
        for name in names[r % len(names) :] + names[: r % len(names)]:
            times[name].append(event_us(contenders[name], inputs, calls[name]))
    return {name: (statistics.median(t), min(t), max(t)) for name, t in times.items()}


def ceilings() -> dict[str, float]:
    """Bytes per second of a copy, read and written; operations per second of a large product."""
    a, b = (torch.empty(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(2))
    m = {d: torch.randn(8192, 8192, device="cuda").to(d) for d in (torch.float32, torch.bfloat16)}
    torch.backends.cuda.matmul.allow_tf32 = False
    copy_us = interleaved({"copy": lambda: b.copy_(a)}, [()])["copy"][1]
    rate = lambda x: 2 * 8192**3 / interleaved({"mm": lambda: x @ x}, [()], 3)["mm"][1] * 1e6
    return {"bytes_per_s": 2 * a.nbytes / copy_us * 1e6, "fp32": rate(m[torch.float32]), "bf16": rate(m[torch.bfloat16])}


def rotated(make, n_bytes: int) -> list:
    """Enough sets of inputs to be larger than L2 together."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return [make(seed) for seed in range(max(2, min(32, -(-2 * l2 // max(n_bytes, 1)))))]


def as_tuple(y):
    return y if isinstance(y, tuple) else (y,)


def operator_rows(top: dict):
    for name, case in OPERATORS.items():
        op = OPS[name]
        for dtype in (torch.float32, torch.bfloat16):
            args = op.make_args(case, dtype, "cuda")
            reference = as_tuple(op.reference(*args))
            n_bytes = sum(t.nbytes for t in (*args, *reference))
            contenders = {"torch": op.reference, "torch.compile": torch.compile(op.reference)}
            for backend in ("cuda", "triton"):
                if backend in op.backends:
                    contenders[backend] = forced(op, backend)
            exact = as_tuple(op.reference(*[a.double() for a in args]))
            allowed = [2 * (r - e).abs().max() + torch.finfo(dtype).eps * e.abs().max() for r, e in zip(reference, exact)]
            for who, run in contenders.items():
                for y, e, limit in zip(as_tuple(run(*args)), exact, allowed, strict=True):
                    if who in ("cuda", "triton") and not (y - e).abs().max() <= limit:
                        raise AssertionError(f"{name}: {who} is off by {float((y - e).abs().max()):.3g}")
            # B023: called before the loop goes on
            times = interleaved(contenders, rotated(lambda seed: op.make_args(case, dtype, "cuda", seed), n_bytes))  # noqa: B023
            yield from rows(f"{name} {case} {str(dtype)[6:]}", times, n_bytes / top["bytes_per_s"] * 1e6)


def forced(op, backend: str):
    run = op.backends[backend]  # called by name: nothing else can be timed unawares
    return lambda *args: run(*args)


def stack_rows(top: dict):
    for name, (L, R, H, S, C, k, cycle, causal, has_step, rows_per_s) in CASES.items():
        weights = weights_of(L, R, H, S, C, k, cycle, causal)
        weights = type(weights)(**{n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in vars(weights).items()})
        T = int(rows_per_s)
        for B in (1, 16):
            def make(seed, B=B, T=T, R=R, C=C, L=L, has_step=has_step):
                rng = torch.Generator("cuda").manual_seed(seed)
                rand = lambda *shape: torch.randn(*shape, generator=rng, device="cuda")
                return rand(B, T, R), rand(B, T, C), rand(B, L, R) if has_step else None

            args = make(0)
            flops = 2 * B * T * L * (2 * H * (k * R + C) + (R + S) * H)
            for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                plan = CudaStack(weights, precision)
                network = EagerStack(weights).cuda().to(dtype)
                peers = {"torch": network, "torch.compile": torch.compile(network)}
                if precision == "bf16":
                    peers["channels last"] = ChannelsLastStack(weights, dtype).cuda()
                contenders = {n: in_dtype(PeerPlan(peer), dtype) for n, peer in peers.items()} | {"cuda": plan.run}
                y = {n: run(*args).float() for n, run in contenders.items()}
                off = float((y["cuda"] - y["torch"]).norm() / y["torch"].norm())
                if not off < {"bf16": 0.03, "fp32": 1e-4}[precision]:
                    raise AssertionError(f"{name}: ours and torch's differ by {off:.3g} of the whole")
                times = interleaved(contenders, rotated(make, sum(a.nbytes for a in args if a is not None)), 5)
                yield from rows(f"{name} B{B} {precision}", times, flops / top[precision] * 1e6)


def in_dtype(peer: PeerPlan, dtype: torch.dtype):
    return lambda *args: peer.run(*[None if a is None else a.to(dtype) for a in args])


def wavenet_rows(top: dict):
    """Samples per second of all streams. of_floor: bytes of weights per step over the copy bandwidth, were they not on chip."""
    for name, model in models(quick=False):
        weights = model.cuda().weights()
        n, forced = 2000, [torch.zeros(20, device="cuda")]
        mel = [torch.randn(20, weights.w_cond.shape[2], device="cuda")]
        # B023: called before the loop goes on
        outputs = lambda plan: plan.run([plan.begin(0, 0, 1.0, 0.0)], [20], mel, forced=forced, parameters=True)[1][0]  # noqa: B023
        exact = outputs(ReferencePlan(weights))
        for precision in ("bf16", "fp32"):
            plan = CudaWaveNet(weights, precision)
            off = float((outputs(plan) - exact).norm() / exact.norm())
            if not off < {"bf16": 0.03, "fp32": 1e-4}[precision]:
                raise AssertionError(f"WaveNet {name}: ours and torch's differ by {off:.3g} of the whole")
            for B in (1, 8, 64, 512):
                cond = [torch.randn(n, plan.n_mels, device="cuda") for _ in range(B)]
                states = [plan.begin(0, b, 1.0, 0.0) for b in range(B)]
                # B023: called before the loop goes on
                run = lambda: plan.run(states, [n] * B, cond)  # noqa: B023
                us = interleaved({"cuda": run}, [()], 3, 1)["cuda"]
                yield {
                    "what": f"WaveNet {name} {precision} {B} streams", "contender": f"team of {plan.team}", "us": us[0],
                    "us_min": us[1], "us_max": us[2], "samples_per_s": n * B / us[0] * 1e6,
                    "of_floor": n * plan.packed_bytes / top["bytes_per_s"] * 1e6 / us[0],
                }  # fmt: skip


def rows(what: str, times: dict, floor_us: float):
    for name, (median, low, high) in times.items():
        yield {
            "what": what, "contender": name, "us": median, "us_min": low, "us_max": high, "of_floor": floor_us / median,
            "vs_torch": times["torch"][0] / median,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--seconds", type=float, default=150, help="begin nothing new after so many")
    options = parser.parse_args()
    fastvoc.warmup()
    end, top = time.monotonic() + options.seconds, ceilings()
    result = {"card": card(), "commit": commit(), "torch": torch.__version__, "ceilings": top, "rows": [], "cut_short": False}
    for part in (wavenet_rows, stack_rows, operator_rows):
        for row in part(top):
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            if time.monotonic() > end:
                result["cut_short"] = True
                options.out.write_text(json.dumps(result, indent=1) + "\n")
                return


if __name__ == "__main__":
    main()
