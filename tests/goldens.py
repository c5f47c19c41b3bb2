"""Goldens: checkpoints of the public implementations, and what those compute from them, in tests/data/CASE.

case.json describes every array of io.npz; NAME_f64 is NAME computed in float64.
"""

import json
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"


class Golden:
    """golden = Golden("waveglow-a"): golden["infer_mel"] is an array, golden.tensor("infer_mel") a tensor."""

    def __init__(self, case: str):
        self.folder = DATA / case
        self.meta = json.loads((self.folder / "case.json").read_text())
        with np.load(self.folder / "io.npz") as archive:
            self.arrays = {name: archive[name] for name in archive.files}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name]).to(dtype)

    def path(self, name: str) -> Path:
        assert (self.folder / name).is_file()
        return self.folder / name

    def check(self, name: str, got, factor: float = 8.0) -> None:
        """got is `name` to within `factor` times the difference between upstream's own float32 and float64 results."""
        measured = self.meta["float32_vs_float64"][name]
        want = self.arrays.get(name + "_f64", self.arrays[name])
        noise = max(measured["max_abs_diff"], measured.get("max_abs_diff_other_kernels", 0.0))
        atol = factor * noise + 1e-6 * measured["max_abs"]
        got = got.detach().cpu().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
        assert got.shape == want.shape, f"{name}: {got.shape}, expected {want.shape}"
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=atol, err_msg=name)

    def checked(self, prefix: str = "") -> list[str]:
        """Names of the outputs that `check` can compare, those that start with prefix."""
        return [name for name in self.meta["float32_vs_float64"] if name.startswith(prefix)]
