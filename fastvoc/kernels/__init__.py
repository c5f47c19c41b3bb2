"""In a source tree the Triton kernels lie at the top level, in kernels/; in an installed fastvoc they lie here."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "kernels")]
