"""python -m benchmarks ops|stack|wavenet|models|all [--only TEXT] [--quick] [--threads N] [--out FILE]
python -m benchmarks --compare BEFORE.json AFTER.json
"""

import argparse
import sys
from pathlib import Path

from benchmarks import bench_models, bench_ops, bench_stack, bench_wavenet, timer
from fastvoc.report.results import compare, read_results

BENCHMARKS = {"ops": bench_ops.run, "stack": bench_stack.run, "wavenet": bench_wavenet.run, "models": bench_models.run}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Checked first, then timed in turn.")
    parser.add_argument("what", choices=[*BENCHMARKS, "all"], nargs="?")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"),
                        help="what changed between two results files; exit code 1 if something of ours is over 5 %% slower")
    parser.add_argument("--only", metavar="TEXT", help="only the sizes or models whose name has this in it (wavenet, models)")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves no speed")
    parser.add_argument("--threads", type=int, metavar="N", help="beside 1; default: what fastvoc uses")
    parser.add_argument("--out", metavar="FILE", help="default: benchmarks/results/WHAT-cpu.json; with --quick none")
    options = parser.parse_args(argv)
    if bool(options.what) == bool(options.compare):
        parser.error("name a benchmark, or two files to --compare")
    if options.compare:
        sys.exit(print_changes(*options.compare))
    if options.out and options.what == "all":
        parser.error("--out takes one benchmark")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.only and options.what not in ("wavenet", "models"):
        parser.error("--only goes with wavenet or models")
    only = {"only": options.only} if options.only else {}
    for name in BENCHMARKS if options.what == "all" else [options.what]:
        result = BENCHMARKS[name](quick=options.quick, n_threads=options.threads, **only)
        if options.quick and not options.out:
            timer.print_table(result["rows"], result["columns"])
        else:
            print("written:", timer.write_results(f"{name}-cpu", out=options.out, quick=options.quick, **result))
        for what, reason in result["skipped"].items():
            print(f"skipped: {what}: {reason}")


def print_changes(before: Path, after: Path) -> int:
    lines = compare(read_results(before), read_results(after))
    if not lines:
        print("the files have no contender of ours in common")
        return 1
    timer.print_table([{**line, "regression": "slower" if line["regression"] else ""} for line in lines])
    return int(any(line["regression"] for line in lines))


if __name__ == "__main__":
    main()
