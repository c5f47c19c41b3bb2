"""WaveNet generation: samples per second of our engine and of what else runs the same weights.

Every contender starts from the same conditioning at sample rate and from empty state, and generates freely. Before
that, all of them are fed the same samples, and their outputs compared with the reference's in float64.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import fastvoc
from benchmarks import timer
from benchmarks.peers import PeerUnavailable, R9y9Package, TorchLoop, initial_of
from benchmarks.timer import Contender
from fastvoc import WaveNet
from fastvoc.ops.wavenet_generate import ReferencePlan, WaveNetWeights

COLUMNS = [
    "size", "contender", "precision", "threads", "streams", "samples_per_s", "samples_per_s_min", "samples_per_s_max",
    "rtf_22050", "vs_torch_loop", "us_per_step", "weight_gb_per_s", "of_floor", "disturbed_rounds",
]
NV = dict(
    out_channels=256, layers=20, stacks=2, residual_channels=64, gate_channels=128, skip_out_channels=256,
    head_channels=256, kernel_size=2, residual_scale=1.0, skip_scale=1.0, cin_channels=80,
    upsample_conditional_features=True, upsample_net="ConvInUpsampleNetwork",
    upsample_params={"upsample_scales": [4, 5, 10]},
)
SIZES = {
    "nv-wavenet R64 S256 A256 L20 k2": NV,
    "nv-wavenet R64 S128 A256 L20 k2": NV | {"skip_out_channels": 128},
    "r9y9 MoL R128 G256 S128 L24 k3": dict(
        out_channels=30, layers=24, stacks=4, residual_channels=128, gate_channels=256, skip_out_channels=128,
        kernel_size=3, cin_channels=80, upsample_conditional_features=True, upsample_net="ConvInUpsampleNetwork",
        upsample_params={"upsample_scales": [4, 4, 4, 4]}, scalar_input=True, cin_pad=2,
    ),
}
TINY = {"tiny": dict(
    out_channels=30, layers=4, stacks=2, residual_channels=16, gate_channels=32, skip_out_channels=16, kernel_size=2,
    cin_channels=20, scalar_input=True,
)}
DEMO = Path(fastvoc.__file__).parent / "demo" / "wavenet"
N_CHECKED = 560  # samples: longer than the longest ring of the sizes above, so that all of them wrap
MAX_SAMPLES = 16384  # per stream and run
METHOD = {
    "work": "conditioning 1x1, all layers, head and drawing included; upsampling and conversion to a wave not",
    "samples_per_s": "of all streams together, median of the rounds; from conditioning at sample rate and empty state",
    "rtf": "seconds computed per second of audio, the audio of all streams counted",
    "vs_torch_loop": "samples_per_s over that of the PyTorch loop (ReferencePlan) with as many streams and threads",
    "macs_per_sample": "of all matrices, conditioning 1x1 included, upsampler excluded",
    "weight_gb_per_s": "packed_bytes per step: streams share a read, what stays in a cache counts as well",
    "mac_peak": "torch.mm 1536^3, best of 0.5 s, in the plan's precision or fp32, whichever is faster",
    "read_bandwidth": "an array of packed_bytes read again and again: best of torch.dot and mv over each thread's "
    "share in 0.2 s, less the time of an empty call",
    "floor": "of a step: max(macs / mac_peak, packed_bytes / read_bandwidth); of_floor = floor / us_per_step. Both "
    "ceilings are what torch reaches here: above 1 we read faster than torch does. alone: false where others took "
    "part of the machine while a ceiling was measured, which is then too low",
    "checked": f"{N_CHECKED} forced samples per stream against float64: fp32 to twice the PyTorch loop's error "
    "+ 4 roundings of the largest output, bf16 to 1 % rms, int8 to 3 %",
}

REPORT = {
    "title": "WaveNet, sample by sample", "group": ["size"], "vary": ["threads", "streams"], "metric": "samples_per_s",
    "unit": "samples/s", "better": "higher", "baseline": "PyTorch loop", "ours": "fastvoc",
    "realtime": {"column": "rtf_22050", "where": {"streams": 1}},
    "tables": [{
        "title": "Fraction of the floor", "where": {"contender": "fastvoc"},
        "columns": {
            "size": "size", "precision": "precision", "threads": "threads", "streams": "streams",
            "us_per_step": "µs a step", "floor_us_per_step": "floor, µs", "of_floor": "of the floor",
        },
    }],
}  # fmt: skip


@dataclass
class Entry:
    """generate: (n, conditioning of some streams, forced or None) -> (B, n, A) network outputs, if forced."""

    name: str
    generate: Callable
    precision: str
    threads: int
    streams: int
    packed_bytes: int | None = None


class Job:
    """Conditioning and forced samples for up to 16 streams, and the exact outputs."""

    def __init__(self, weights: WaveNetWeights, max_streams: int, n_checked: int):
        rng = torch.Generator().manual_seed(1)
        C, n = weights.w_cond.shape[2], (max_streams, n_checked)
        self.cond = list(torch.randn(max_streams, MAX_SAMPLES, C, generator=rng) * 0.5)
        if weights.n_classes:
            self.forced = list(torch.randint(weights.n_classes, n, generator=rng).float())
        else:
            self.forced = list(torch.rand(n, generator=rng) * 2 - 1)
        self.n_checked = n_checked
        outputs = lambda w: plan_loop(ReferencePlan(w))(n_checked, self.cond, self.forced)
        with timer.threads(1):
            self.exact = outputs(weights.double())
            self.torch_error = float((outputs(weights) - self.exact).abs().max())

    def check(self, precision: str, outputs) -> str | None:
        exact, eps = self.exact[: len(outputs)], torch.finfo(torch.float32).eps
        if outputs.shape != exact.shape:
            return f"its shape is {tuple(outputs.shape)}, not {tuple(exact.shape)}"
        if precision != "fp32":
            share = {"bf16": 0.01, "int8": 0.03}[precision]
            error, allowed = float((outputs - exact).pow(2).mean().sqrt()), share * float(exact.pow(2).mean().sqrt())
        else:
            error = float((outputs - exact).abs().max())
            allowed = 2 * self.torch_error + 4 * eps * float(exact.abs().max())
        return None if error <= allowed else f"its error is {error:.3g}, allowed are {allowed:.3g}"


def plan_loop(plan) -> Callable:
    """Our engine or the reference, as a contender generates."""

    def generate(n, cond, forced=None):
        states = [plan.begin(0, b, 1.0, initial_of(plan.weights)) for b in range(len(cond))]
        options = {} if forced is None else dict(forced=[f[:n] for f in forced], parameters=True)
        _, outputs = plan.run(states, [n] * len(cond), [c[:n] for c in cond], **options)
        return None if forced is None else torch.stack(outputs)

    return generate


def entries_of(
    model: WaveNet, weights: WaveNetWeights, n_threads: int, quick: bool, with_compile: bool
) -> tuple[list[Entry], dict]:
    counts, many = sorted({1, n_threads}), (1, 8) if quick else (1, 8, 16)
    with fastvoc.backend("reference"):
        reference = plan_loop(model.plan())
    entries = [Entry("PyTorch loop", reference, "fp32", t, s) for t in counts for s in many]
    for precision in ("fp32", "bf16", "int8"):
        for t in counts:
            with fastvoc.backend("cpu"):
                plan = model.plan(precision, t)
            entries += [Entry("fastvoc", plan_loop(plan), precision, t, s, plan.packed_bytes) for s in many]
    skipped = {}
    torch._dynamo.reset()
    for name, make, at in (
        ("PyTorch, all past taps at once", lambda: TorchLoop(weights, "eager"), [(1, 1), (1, 8)]),
        ("torch.jit.script of that", lambda: TorchLoop(weights, "script"), [(t, s) for t in counts for s in (1, 8)]),
        ("torch.compile of its step", lambda: TorchLoop(weights, "compile"), [(1, 1), (1, 8)]),
        ("wavenet_vocoder 0.1.1", lambda: R9y9Package(weights), [(1, 1), (1, 8), (n_threads, 1)]),
    ):
        if "compile" in name and not with_compile:
            skipped[name] = "it takes a minute to compile: the first size only, and not with --quick"
            continue
        for t, s in dict.fromkeys(at):
            try:
                generate = make()
                with timer.threads(t):
                    generate(3, [torch.zeros(3, weights.w_cond.shape[2])] * s)
                entries.append(Entry(name, generate, "fp32", t, s))
            except PeerUnavailable as reason:
                skipped[name] = str(reason)
                break
            except Exception as reason:  # a peer that does not run is a fact about it, not about us
                skipped[f"{name}, {t} threads, {s} streams"] = f"{type(reason).__name__}: {str(reason).strip()[:300]}"
    return entries, skipped


def macs_per_sample(w: WaveNetWeights) -> int:
    matrices = [w.w_in, w.w_cond, w.w_res, w.w_skip, w.w_hidden, w.w_logits]
    return sum(m.numel() for m in matrices) + (0 if w.n_classes else w.front.numel())


def bench_size(
    size: str, model: WaveNet, n_threads: int, quick: bool, with_compile: bool
) -> tuple[list[dict], dict, dict]:
    weights = model.weights()
    say(f"{size}: compiling peers and checking")
    entries, skipped = entries_of(model, weights, n_threads, quick, with_compile)
    job = Job(weights, max(e.streams for e in entries), 40 if quick else N_CHECKED)
    key = lambda e: f"{e.name}, {e.precision}, {e.threads} threads, {e.streams} streams"
    contenders, n_samples = {}, {}
    for e in entries:
        around = lambda e=e: timer.threads(e.threads)
        cond = job.cond[: e.streams]
        forced = lambda e=e, cond=cond: e.generate(job.n_checked, cond, job.forced[: e.streams])
        n = n_samples[key(e)] = samples_for(0.02 if quick else 0.2, e, cond, around)
        run = lambda e=e, cond=cond, n=n: e.generate(n, cond)
        contenders[key(e)] = Contender(run, around, lambda e=e, f=forced: (e.precision, f()), e.threads)
    say(f"{size}: checking and timing {len(entries)} contenders")
    times = timer.interleave(
        contenders, 2 if quick else 5, min_time=0, retries=1, check=lambda output, first: job.check(*output)
    )
    ceilings = {}
    for e in entries:
        if e.packed_bytes:
            ceiling(ceilings, e, quick)
    say(f"{size}: timed")
    rates = {key(e): n_samples[key(e)] * e.streams / times[key(e)].median for e in entries}
    rows = []
    for e in entries:
        t, made = times[key(e)], n_samples[key(e)] * e.streams
        loop = rates[key(Entry("PyTorch loop", None, "fp32", e.threads, e.streams))]
        row = {
            "size": size, "contender": e.name, "precision": e.precision, "threads": e.threads, "streams": e.streams,
            "samples_per_s": made / t.median, "samples_per_s_min": made / t.max, "samples_per_s_max": made / t.min,
            "rtf_16000": 16000 * t.median / made, "rtf_22050": 22050 * t.median / made,
            "vs_torch_loop": rates[key(e)] / loop, "us_per_step": t.median / n_samples[key(e)] * 1e6,
            "samples_per_stream_and_round": n_samples[key(e)],
        }
        macs = macs_per_sample(weights) * e.streams
        row |= {"mac_per_s": macs / t.median * n_samples[key(e)]}
        if e.packed_bytes:
            peak = ceilings[key_of_ceiling(e)]
            floor = max(macs / peak["mac_peak"], e.packed_bytes / peak["read_bandwidth"])
            row |= {
                "packed_bytes": e.packed_bytes, "weight_gb_per_s": e.packed_bytes / row["us_per_step"] / 1e3,
                "floor_us_per_step": floor * 1e6, "of_floor": floor * 1e6 / row["us_per_step"],
                "ceilings_alone": peak["alone"],
            }
        rows.append(timer.rounded(row | t.facts()))
    facts = {"macs_per_sample": macs_per_sample(weights), "torch_fp32_error": job.torch_error, "ceilings": ceilings}
    return rows, skipped, facts


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def samples_for(seconds: float, e: Entry, cond, around) -> int:
    """How many samples per stream a run takes to last so long."""
    n = 16
    with around():
        while True:
            start = time.perf_counter()
            e.generate(n, cond)
            spent = time.perf_counter() - start
            if n == MAX_SAMPLES or spent >= seconds / 4:
                return max(8, min(MAX_SAMPLES, int(n * seconds / spent)))
            n = min(MAX_SAMPLES, n * 4)


def key_of_ceiling(e: Entry) -> str:
    return f"{e.precision}, {e.threads} threads, {e.packed_bytes} bytes"


def ceiling(known: dict, e: Entry, quick: bool) -> None:
    """Measures what the machine can do at this precision, number of threads and size of weights, once each."""
    if key_of_ceiling(e) in known:
        return
    how = dict(seconds=0.02, n=128) if quick else {}
    retries = 0 if quick else 2
    dtypes = [torch.float32, torch.bfloat16] if e.precision != "fp32" else [torch.float32]
    peaks = [timer.undisturbed(lambda d=d: timer.mac_peak(e.threads, d, **how), e.threads, retries) for d in dtypes]
    read, alone = timer.undisturbed(lambda: timer.read_bandwidth(e.threads, e.packed_bytes), e.threads, retries)
    mac_peak = max(peak for peak, _ in peaks)
    known[key_of_ceiling(e)] = {
        "mac_peak": mac_peak, "read_bandwidth": read, "alone": alone and all(quiet for _, quiet in peaks),
    }


@torch.no_grad()
def tamed(model: WaveNet) -> WaveNet:
    """Random weights whose gates are not all saturated, as trained ones are not: saturation enlarges every rounding."""
    for layer in model.conv_layers:
        layer.conv.weight *= 0.5
        layer.conv1x1_out.weight *= 0.5
    return model


def models(quick: bool):
    for name, config in (TINY if quick else SIZES).items():
        torch.manual_seed(0)
        yield name, tamed(WaveNet(**config).eval())
    if DEMO.is_dir() and not quick:
        yield "fastvoc/demo/wavenet", fastvoc.load(DEMO).eval()


def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each size. only: sizes whose name has this in it."""
    for name, model in models(quick):
        if only in name:
            with_compile = name == next(iter(SIZES)) and not quick
            rows, missing, facts = bench_size(name, model, n_threads or fastvoc.get_num_threads(), quick, with_compile)
            yield {"rows": rows, "sizes": {name: facts}, "skipped": {f"{name}: {what}": why for what, why in missing.items()}}
