"""The operators under pytest-benchmark, to compare two commits: python -m pytest benchmarks --benchmark-only"""

import pytest
import torch

from benchmarks.bench_ops import accuracy_rule, backends_of, callable_ops, forced
from benchmarks.timer import real_isas, threads


@pytest.mark.parametrize("op, label, backend, isa", [
    pytest.param(op, label, backend, isa, id=f"{op.name}-{label}-{backend}-{isa}")
    for op in callable_ops()
    for label in op.cases
    for backend, isa in [("reference", real_isas()[-1]), *backends_of(op)]
])
def test_op(benchmark, op, label, backend, isa):
    benchmark.group = f"{op.name}, {label}"
    with torch.inference_mode():
        args = op.make_args(op.cases[label], torch.float32, "cpu")
        with threads(1):
            plain = op.reference(*args)
        with forced(backend, isa, 1)():
            problem = accuracy_rule(op, args)(op(*args), plain)
            assert problem is None, problem
            benchmark(op, *args)
