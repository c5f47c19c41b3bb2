"""python -m benchmarks WHAT [--only TEXT] [--quick] [--threads N] [--out FILE]
python -m benchmarks --compare BEFORE.json AFTER.json
"""

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from benchmarks.record import RESULTS, print_table, record
from fastvoc.report.results import compare, read_results

BENCHMARKS = {  # in the order of `all`: what the README quotes comes first
    "wavenet": "samples per second of the WaveNet engine, beside PyTorch and r9y9's package",
    "models": "the feed-forward vocoders whole, beside PyTorch, ONNX Runtime and the upstreams' packages",
    "ops": "every operator, on every backend and instruction set",
    "stack": "the gated residual stack alone, on every instruction set, beside its peers",
    "streams": "how many real-time WaveNet streams this machine holds",
    "serving": "all five models: precisions, threads, batches, lengths; latencies and memory",
    "training": "one training step of every family, time and memory, beside plain PyTorch",
    "quality": "what bf16 and int8 cost: error against float64, and how it sounds",
    "scaling": "time against length, channels, batch and threads; cliffs",
    "roofline": "every CPU kernel under the ceilings of this machine",  # last: it changes how the process keeps memory
}


def main(argv: list[str] | None = None) -> None:
    listed = "\n".join(f"  {name:<10}{what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Checked first, then timed in turn. Results are written after each part; Ctrl-C keeps what is there.",
        epilog=f"{listed}\n  {'all':<10}each of them, one after the other\n  {'pictures':<10}docs/img from benchmarks/results",
    )  # fmt: skip
    parser.add_argument("what", choices=[*BENCHMARKS, "all", "pictures"], nargs="?", metavar="WHAT", help="see below")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"),
                        help="what changed between two results files; exit code 1 if something of ours is over 5 %% slower")
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in its name; writes no file without --out")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves no speed")
    parser.add_argument("--threads", type=int, metavar="N", help="beside 1; default: what fastvoc uses")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default: benchmarks/results/WHAT-cpu.json; with --quick or --only none")
    options = parser.parse_args(argv)
    if bool(options.what) == bool(options.compare):
        parser.error("name a benchmark, or two files to --compare")
    if options.compare:
        sys.exit(print_changes(*options.compare))
    if options.what == "pictures":
        from benchmarks.pictures import draw_all

        return draw_all(options.out)
    if options.what == "all" and (options.out or options.only):
        parser.error("--out and --only take one benchmark")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    failed = []
    for name in BENCHMARKS if options.what == "all" else [options.what]:
        try:
            bench(name, options)
        except Exception:
            if options.what != "all":
                raise
            traceback.print_exc()  # and go on: each of the others stands alone
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def bench(name: str, options) -> None:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    path = options.out or (None if options.quick or options.only else RESULTS / f"{name}-cpu.json")
    parts = module.run(quick=options.quick, n_threads=options.threads, only=options.only)
    result = record(f"{name}-cpu", parts, path, quick=options.quick, report=module.REPORT, method=module.METHOD)
    print_table(result["rows"], module.COLUMNS)
    for what, reason in result["skipped"].items():
        print(f"skipped: {what}: {reason}")
    if path is not None:
        print("written:", path)


def print_changes(before: Path, after: Path) -> int:
    lines = compare(read_results(before), read_results(after))
    if not lines:
        print("the files have no contender of ours in common")
        return 1
    print_table([{**line, "regression": "slower" if line["regression"] else ""} for line in lines])
    return int(any(line["regression"] for line in lines))


if __name__ == "__main__":
    main()
