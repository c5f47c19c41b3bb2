"""fastvoc's compiled kernels. Private: arguments are checked by the Python layer.

Tensors cross as addresses (`tensor.data_ptr()`), sizes and strides as numbers of values; all arguments are positional.
tests/test_types.py compares this file with the built module.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

def cpu_isas() -> list[tuple[str, bool, bool, str]]:
    """(name, supported, emulated, reason) of every instruction set that was built, weakest first"""

def cpu_isa() -> str: ...
def set_cpu_isa(name: str, /) -> None: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def affine_coupling_cpu(
    x: int, x_stride: int, log_s: int, s_stride: int, t: int, t_stride: int, y: int, sums: int, n_items: int, n: int, /
) -> None: ...
def affine_coupling_inverse_cpu(
    y: int, y_stride: int, log_s: int, s_stride: int, t: int, t_stride: int, x: int, n_items: int, n: int, /
) -> None: ...
def affine_coupling_backward_cpu(
    dy: int, dy_stride: int, dsum: int, x: int, x_stride: int, log_s: int, s_stride: int, dx: int, dlog_s: int,
    n_items: int, n: int, /,
) -> None: ...
def gated_activation_cpu(a: int, b: int, y: int, n: int, /) -> None: ...
def gated_activation_backward_cpu(dy: int, a: int, b: int, da: int, db: int, n: int, /) -> None: ...
def gated_residual_backward_cpu(
    dx_out: int, dskip: int, u: int, a: int, w_in: int, w_out: int, z: int, da: int, dx: int, dw_in: int, dw_out: int,
    du_sums: int, workspace: int, batch: int, length: int, residual: int, half_gate: int, skip: int, kernel: int,
    dilation: int, left: int, rho: float, n_threads: int, /,
) -> None: ...
def gated_residual_backward_bytes(residual: int, half_gate: int, kernel: int, n_threads: int, /) -> int: ...
def gated_residual_backward_tiles(length: int, kernel: int, dilation: int, /) -> int:
    """Rows of du_sums for each item"""

def gated_residual_bf16_unit() -> int:
    """Channels are multiples of this"""

def gated_residual_bf16_tile() -> int:
    """Samples that share a row of du_sums"""

def gated_residual_bf16_bytes(
    gradient: bool, batch: int, length: int, residual: int, half_gate: int, skip: int, kernel: int, n_threads: int, /
) -> int: ...
def gated_residual_bf16_cpu(
    w_in: int, b_in: int, w_out: int, b_out: int, x: int, u: int, cond: int, x_out: int, skip: int, a: int, workspace: int,
    batch: int, length: int, residual: int, half_gate: int, skip_channels: int, kernel: int, dilation: int, left: int,
    rho: float, n_threads: int, /,
) -> None: ...
def gated_residual_bf16_backward_cpu(
    w_in: int, w_out: int, dx_out: int, dskip: int, u: int, a: int, da: int, dx: int, dw_in: int, db_in: int, dw_out: int,
    db_out: int, du_sums: int, workspace: int, batch: int, length: int, residual: int, half_gate: int, skip_channels: int,
    kernel: int, dilation: int, left: int, rho: float, n_threads: int, /,
) -> None: ...
def invertible_conv1x1_cpu(w: int, x: int, y: int, n_items: int, channels: int, length: int, /) -> None: ...
def invertible_conv1x1_backward_cpu(
    w: int, dy: int, x: int, dx: int, dw: int, n_items: int, channels: int, length: int, /
) -> None: ...
def upsample_fir_cpu(
    x: int, weight: int, out: int, n_frames: int, first_in: int, first_out: int, n_out: int, channels: int, scale: int,
    n_taps: int, freq_taps: int, first: int, bias: float, slope: float, edge: int, /,
) -> None: ...
def upsample_mix_cpu(
    x: int, weight: int, bias: int, out: int, n_frames: int, first_in: int, first_out: int, n_out: int, channels: int,
    channels_out: int, scale: int, n_taps: int, first: int, edge: int, /,
) -> None: ...
def elementary_cpu(function: int, x: int, y: int, n: int, /) -> None: ...

class WaveNetPlan:
    def __init__(
        self, sizes: dict[str, Any], dilations: Sequence[int], weights: dict[str, Any], precision: int, n_threads: int, /
    ) -> None: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    def workspace_bytes(self, n_streams: int, n_threads: int, /) -> int: ...
    def begin(
        self, state: int, seed: int, stream: int, temperature: float, initial: float, speaker: int, /
    ) -> None: ...
    def run(
        self, streams: Sequence[int], n_samples: Sequence[int], cond: Sequence[int], layer_cond: bool, cond_width: int,
        half_gate: int, noise: Sequence[int], forced: Sequence[int], out: Sequence[int], parameters: Sequence[int],
        workspace: int, n_threads: int, /,
    ) -> None: ...

class GatedResidualStackPlan:
    def __init__(
        self, w_in: ArrayLike, b_in: ArrayLike, w_cond: ArrayLike, w_out: ArrayLike, b_out: ArrayLike,
        dilations: Sequence[int], causal: bool, rho: float, step_in_residual: bool, precision: int, isa: str, /,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def gate_width(self) -> int: ...
    def workspace_bytes(self, n_items: int, length: int, n_threads: int, /) -> int: ...
    def project(
        self, first_layer: int, last_layer: int, n_items: int, n_frames: int, cond: int, projection: int, workspace: int,
        n_threads: int, /,
    ) -> None: ...
    def run(
        self, first_layer: int, last_layer: int, n_items: int, length: int, x: int, cond: int, step: int, out: int,
        workspace: int, n_threads: int, n_projected: int, n_frames: int, projection: int, first: int, taps: int,
        n_taps: int, cond_apart: bool, /,
    ) -> None: ...
    def run_layer(
        self, n_items: int, length: int, x: int, added: int, step: int, x_next: int, skip: int, a: int,
        workspace: int, n_threads: int, /,
    ) -> None: ...
