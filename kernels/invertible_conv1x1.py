"""Invertible 1×1 convolution in Triton. The contract is fastvoc/ops/invertible_conv1x1.py.

C is 4 to 8 in WaveGlow: a product so thin is memory-bound, and too thin for tensor cores. So a program keeps a tile of
outputs in registers and adds one input channel after the other: every product is a true float32 multiply-add.
"""

import torch
import triton
import triton.language as tl
from fastvoc.kernels.configurations import CONV1X1
from fastvoc.kernels.launch import Tuned, accept, on_device_of, tuning_key
from torch import Tensor

SUM_TILE = 64  # samples summed over in one step, and the number of pieces the sum over time is cut into: both fixed,
PIECES = 256  # so that the order of the sum is
SUM_CHANNELS = 16


@triton.jit
def invertible_conv1x1_kernel(
    x_ptr, w_ptr, y_ptr, C, T, w_row, w_column, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr
):
    """y[o] = Σ_c w[o, c]·x[c]; with w_row and w_column exchanged, by the transposed matrix."""
    n_tiles = tl.cdiv(T, BLOCK_T)
    item = (tl.program_id(0) // n_tiles).to(tl.int64) * C
    t = (tl.program_id(0) % n_tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y = tl.zeros((BLOCK_C, BLOCK_T), tl.float32)
    for c in range(C):
        x = tl.load(x_ptr + (item + c) * T + t, mask=t < T, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + o * w_row + c * w_column, mask=o < C, other=0.0).to(tl.float32)
        y += w[:, None] * x[None, :]
    tl.store(y_ptr + (item + o)[:, None] * T + t[None, :], y, mask=(o < C)[:, None] & (t < T)[None, :])


@triton.jit
def weight_gradient_kernel(
    dy_ptr, x_ptr, dw_ptr, n_tiles, tiles_each, C, T, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Piece p of dw[i, j] = Σ_t dy[i, t]·x[j, t]  ->  dw (pieces, C, C), float32.  Grid: tiles of dw, pieces."""
    n_blocks = tl.cdiv(C, BLOCK_C)
    i = tl.program_id(0) // n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    j = tl.program_id(0) % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    piece = tl.program_id(1)
    n_times = tl.cdiv(T, BLOCK_T)
    dw = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    for tile in range(piece * tiles_each, tl.minimum((piece + 1) * tiles_each, n_tiles)):
        item = (tile // n_times).to(tl.int64) * C
        t = (tile % n_times).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        dy = (item + i)[:, None] * T + t[None, :]
        dy = tl.load(dy_ptr + dy, mask=(i < C)[:, None] & (t < T)[None, :], other=0.0)
        x = (item + j)[None, :] * T + t[:, None]
        x = tl.load(x_ptr + x, mask=(j < C)[None, :] & (t < T)[:, None], other=0.0)
        dw = tl.dot(dy, x, dw, input_precision="ieee")
    inside = (i < C)[:, None] & (j < C)[None, :]
    tl.store(dw_ptr + piece.to(tl.int64) * C * C + (i[:, None] * C + j[None, :]), dw, mask=inside)


product = Tuned(invertible_conv1x1_kernel, CONV1X1)
weight_gradient = Tuned(weight_gradient_kernel, {size: [{"num_warps": 4, "num_stages": 2}] for size in (2, 4)})


def _product(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    (B, C, T), y = x.shape, torch.empty_like(x)
    if x.numel():
        with on_device_of(x):
            block = min(16, triton.next_power_of_2(C))
            product(
                tuning_key(B * T, C), lambda c: (B * triton.cdiv(T, c["BLOCK_T"]), triton.cdiv(C, block)),
                x, weight, y, C, T, *((1, C) if transposed else (C, 1)), BLOCK_C=block,
            )  # fmt: skip
    return y


def invertible_conv1x1_triton(x: Tensor, weight: Tensor) -> Tensor:
    return _product(*accept(x, weight), transposed=False)


def invertible_conv1x1_backward_triton(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, weight = accept(dy, x, weight)
    B, C, T = x.shape
    n_tiles = B * triton.cdiv(T, SUM_TILE)
    if not n_tiles:
        return torch.empty_like(x), torch.zeros_like(weight)
    tiles_each = triton.cdiv(n_tiles, min(n_tiles, PIECES))
    pieces = triton.cdiv(n_tiles, tiles_each)
    dweight = torch.empty(pieces, C, C, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        weight_gradient(
            (), lambda c: (triton.cdiv(C, SUM_CHANNELS) ** 2, pieces),
            dy, x, dweight, n_tiles, tiles_each, C, T, BLOCK_C=SUM_CHANNELS, BLOCK_T=SUM_TILE,
        )  # fmt: skip
    return _product(dy, weight, transposed=True), dweight.sum(0).to(weight.dtype)
