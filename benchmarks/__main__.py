"""python -m benchmarks ops|wavenet|all [--quick] [--threads N] [--out FILE]"""

import argparse

from benchmarks import bench_ops, bench_wavenet, timer

BENCHMARKS = {"ops": bench_ops.run, "wavenet": bench_wavenet.run}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Checked first, then timed in turn.")
    parser.add_argument("what", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves no speed")
    parser.add_argument("--threads", type=int, metavar="N", help="beside 1; default: what fastvoc uses")
    parser.add_argument("--out", metavar="FILE", help="default: benchmarks/results/WHAT-cpu.json; with --quick none")
    options = parser.parse_args(argv)
    if options.out and options.what == "all":
        parser.error("--out takes one benchmark: ops or wavenet")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    for name in BENCHMARKS if options.what == "all" else [options.what]:
        result = BENCHMARKS[name](quick=options.quick, n_threads=options.threads)
        if options.quick and not options.out:
            timer.print_table(result["rows"], result["columns"])
        else:
            print("written:", timer.write_results(f"{name}-cpu", out=options.out, quick=options.quick, **result))
        for what, reason in result["skipped"].items():
            print(f"skipped: {what}: {reason}")


if __name__ == "__main__":
    main()
