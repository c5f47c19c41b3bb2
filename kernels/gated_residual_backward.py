"""The gradient of the gated residual layer in Triton. The contract is fastvoc/ops/gated_residual.py.

    dz = ρ·W_resᵀ·dx' + W_skipᵀ·dskip;  da, z from dz and a                     gate_gradient_kernel
    du(t) = Σ_j W_in[:, :, j]ᵀ·da(t - j·d + left);  dx = du + ρ·dx'             input_gradient_kernel
    dW_in[:, :, j] = Σ_t da(t)·u(t + j·d - left)ᵀ, dW_out = Σ_t dout(t)·z(t)ᵀ   weight_gradient_kernel

Three matrix products with their elementwise work in the epilogues. The sums over time are cut into pieces that are
added in a fixed order afterwards: no atomics, so a gradient is the same in every run.
"""

import torch
import triton
import triton.language as tl
from fastvoc.kernels.configurations import GATE_GRADIENT, PRODUCT, WEIGHT_GRADIENT
from fastvoc.kernels.gated_residual import check_offsets, pack_taps, reach_left, shifted_input, tile_of
from fastvoc.kernels.gates import gate_gradient
from fastvoc.kernels.launch import Tuned, accept, dot_precision, on_device_of, tuning_key
from torch import Tensor

SUM_TILE = 32  # samples summed over in one step; no matter of tuning, so that the pieces are not either
PROGRAMS = 512  # wanted of weight_gradient_kernel: a few for each processor of a large GPU


@triton.jit
def times_rows(
    acc, dy_ptr, w_ptr, t0, row, h, T, N: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """acc + dy·w for dy (rows, N) and w (N, H)"""
    i = tl.arange(0, BLOCK_T)
    for n0 in range(0, N, BLOCK_C):
        n = n0 + tl.arange(0, BLOCK_C)
        mask = (t0 + i < T)[:, None] & (n < N)[None, :]
        dy = tl.load(dy_ptr + row * N + (i[:, None] * N + n[None, :]), mask=mask, other=0.0)
        mask = (n < N)[:, None] & (h < H)[None, :]
        w = tl.load(w_ptr + (n[:, None] * H + h[None, :]), mask=mask, other=0.0)
        acc = tl.dot(dy, w, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["T"])
def gate_gradient_kernel(
    dx_out_ptr, dskip_ptr, a_ptr, w_out_ptr, da_ptr, z_ptr, T, rho,
    R: tl.constexpr, H: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """da (B, T, 2H) and z (B, T, H)"""
    _, t0, row = tile_of(tl.program_id(0), T, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dz = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    dz = times_rows(dz, dx_out_ptr, w_out_ptr, t0, row, h, T, R, H, PRECISION, BLOCK_T, BLOCK_C) * rho
    dz = times_rows(dz, dskip_ptr, w_out_ptr + R * H, t0, row, h, T, S, H, PRECISION, BLOCK_T, BLOCK_C)
    i = tl.arange(0, BLOCK_T)
    inside = (t0 + i < T)[:, None] & (h < H)[None, :]
    at = row * (2 * H) + (i[:, None] * (2 * H) + h[None, :])
    tanh_half = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid_half = tl.load(a_ptr + at + H, mask=inside, other=0.0).to(tl.float32)
    dtanh, dsigmoid, z = gate_gradient(dz, tanh_half, sigmoid_half)
    tl.store(da_ptr + at, dtanh, mask=inside)
    tl.store(da_ptr + at + H, dsigmoid, mask=inside)
    tl.store(z_ptr + row * H + (i[:, None] * H + h[None, :]), z, mask=inside)


@triton.jit(do_not_specialize=["T", "dilation", "left"])
def input_gradient_kernel(
    da_ptr, w_in_ptr, dx_out_ptr, dx_ptr, T, dilation, left, rho,
    R: tl.constexpr, G: tl.constexpr, KERNEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """dx (B, T, R). w_in is (k, 2H, R)."""
    b, t0, row = tile_of(tl.program_id(0), T, BLOCK_T)
    r = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    du = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    BLOCKS: tl.constexpr = (G + BLOCK_C - 1) // BLOCK_C
    for n in range(KERNEL * BLOCKS):
        tap = n // BLOCKS
        g = (n % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
        da = shifted_input(da_ptr, None, b, t0, row, left - tap * dilation, g, T, 0, G, False, BLOCK_T)
        mask = (g < G)[:, None] & (r < R)[None, :]
        w = tl.load(w_in_ptr + tap * (G * R) + (g[:, None] * R + r[None, :]), mask=mask, other=0.0)
        du = tl.dot(da, w, du, input_precision=PRECISION)
    i = tl.arange(0, BLOCK_T)
    inside = (t0 + i < T)[:, None] & (r < R)[None, :]
    at = row * R + (i[:, None] * R + r[None, :])
    dx = du + rho * tl.load(dx_out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, dx, mask=inside)


@triton.jit(do_not_specialize=["n_tiles", "tiles_each", "T", "dilation", "left", "step_stride"])
def weight_gradient_kernel(
    dy_ptr, x_ptr, step_ptr, dw_ptr, db_ptr, n_tiles, tiles_each, T, dilation, left, step_stride,
    M: tl.constexpr, N: tl.constexpr, HAS_STEP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Piece p of dw[j] = Σ_t dy(t)·u(t + j·d - left)ᵀ and of db = Σ_t dy(t).

    dy (B, T, M), x (B, T, N)  ->  dw (pieces, k, M, N), db (pieces, M), float32.  Grid: M·N tiles, k, pieces.
    """
    N_BLOCKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    m = tl.program_id(0) // N_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = tl.program_id(1)
    piece = tl.program_id(2)
    shift = tap * dilation - left
    i = tl.arange(0, BLOCK_T)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(piece * tiles_each, tl.minimum((piece + 1) * tiles_each, n_tiles)):
        b, t0, row = tile_of(tile, T, BLOCK_T)
        mask = (m < M)[:, None] & (t0 + i < T)[None, :]
        dy = tl.load(dy_ptr + row * M + (i[None, :] * M + m[:, None]), mask=mask, other=0.0)
        u = shifted_input(x_ptr, step_ptr, b, t0, row, shift, n, T, step_stride, N, HAS_STEP, BLOCK_T)
        dw = tl.dot(dy, u, dw, input_precision=PRECISION)
        db += tl.sum(dy.to(tl.float32), axis=1)
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = (piece.to(tl.int64) * tl.num_programs(1) + tap) * (M * N)
    tl.store(dw_ptr + at + (m[:, None] * N + n[None, :]), dw, mask=inside)
    if (tap == 0) & (tl.program_id(0) % N_BLOCKS == 0):
        tl.store(db_ptr + piece.to(tl.int64) * M + m, db, mask=m < M)


gate_gradient_tuned = Tuned(gate_gradient_kernel, GATE_GRADIENT)
input_gradient_tuned = Tuned(input_gradient_kernel, PRODUCT)
weight_gradient_tuned = Tuned(weight_gradient_kernel, WEIGHT_GRADIENT)


def weight_gradient(dy: Tensor, x: Tensor, step: Tensor | None, kernel: int, dilation: int, left: int, precision: str):
    """-> dw (k, M, N), db (M,), float32.   dy (B, T, M), x (B, T, N); step (B, N) is added to x."""
    (B, T, M), N = dy.shape, x.shape[2]
    n_tiles = B * triton.cdiv(T, SUM_TILE)
    most = triton.cdiv(PROGRAMS, kernel * triton.cdiv(M, 64) * triton.cdiv(N, 64))
    tiles_each = triton.cdiv(n_tiles, min(n_tiles, most))
    pieces = triton.cdiv(n_tiles, tiles_each)
    dw = torch.empty(pieces, kernel, M, N, dtype=torch.float32, device=dy.device)
    db = torch.empty(pieces, M, dtype=torch.float32, device=dy.device)
    weight_gradient_tuned(
        tuning_key(B * T, M, N, kernel, step is not None, precision),
        lambda c: (triton.cdiv(M, c["BLOCK_M"]) * triton.cdiv(N, c["BLOCK_N"]), kernel, pieces),
        dy, x, step, dw, db, n_tiles, tiles_each, T, dilation, left, 0 if step is None else step.stride(0),
        M=M, N=N, HAS_STEP=step is not None, PRECISION=precision, BLOCK_T=SUM_TILE,
    )  # fmt: skip
    return dw.sum(0), db.sum(0)


def gated_residual_backward_triton(dx_out, dskip, x, a, w_in, w_out, step, dilation, causal, rho, step_in_residual):
    dtype = w_in.dtype
    dx_out, dskip, x, a, w_in, w_out, step = accept(dx_out, dskip, x, a, w_in.to(x.dtype), w_out.to(x.dtype), step)
    (B, T, R), (G, _, k) = x.shape, w_in.shape
    H, S = G // 2, w_out.shape[0] - R
    like = lambda *shape, dtype=x.dtype: torch.empty(shape, dtype=dtype, device=x.device)
    if not x.numel():
        dw_in, db_in, dw_out, db_out = (torch.zeros_like(w, dtype=dtype) for w in (w_in, w_in[:, 0, 0], w_out, w_out[:, 0]))
        return like(B, T, R), dw_in, db_in, dw_out, db_out, like(B, T, G), torch.zeros(B, R, dtype=x.dtype, device=x.device)
    left = reach_left(k, dilation, causal)
    check_offsets(T, R, H, S, (k - 1) * dilation)
    precision = dot_precision(x.dtype)
    dx, da, z = like(B, T, R), like(B, T, G), like(B, T, H)
    with on_device_of(x):
        tiles = lambda c: B * triton.cdiv(T, c["BLOCK_T"])
        gate_gradient_tuned(
            tuning_key(B * T, R, H, S, precision), lambda c: (tiles(c), triton.cdiv(H, c["BLOCK_H"])),
            dx_out, dskip, a, w_out, da, z, T, rho, R=R, H=H, S=S, PRECISION=precision,
        )  # fmt: skip
        input_gradient_tuned(
            tuning_key(B * T, R, G, k, precision), lambda c: (tiles(c), triton.cdiv(R, c["BLOCK_O"])),
            da, pack_taps(w_in), dx_out, dx, T, dilation, left, rho, R=R, G=G, KERNEL=k, PRECISION=precision,
        )  # fmt: skip
        dw_in, db_in = weight_gradient(da, x, step, k, dilation, left, precision)
        dw_res, db_res = weight_gradient(dx_out, z, None, 1, 1, 0, precision)
        if S:
            dw_skip, db_skip = weight_gradient(dskip, z, None, 1, 1, 0, precision)
    dw_out, db_out = dw_res[0] * rho, db_res * rho
    if S:
        dw_out, db_out = torch.cat([dw_out, dw_skip[0]]), torch.cat([db_out, db_skip])
    dstep = _step_gradient(da, w_in, dilation, left)
    if step_in_residual:
        dstep += rho * dx_out.sum(1, dtype=torch.float64)
    of_weights = dw_in.permute(1, 2, 0), db_in, dw_out, db_out
    return dx, *(w.to(dtype).contiguous() for w in of_weights), da, dstep.to(x.dtype)


def _step_gradient(da: Tensor, w_in: Tensor, dilation: int, left: int) -> Tensor:
    """Σ_t du(t) (B, R): of each tap, the sum of da over the samples that it reached, times its matrix.

    In float64, since what is summed first and multiplied then keeps the errors of sums that largely cancel.
    """
    T = da.shape[1]
    dstep = torch.zeros(da.shape[0], w_in.shape[1], dtype=torch.float64, device=da.device)
    for j in range(w_in.shape[2]):
        shift = j * dilation - left
        reached = da[:, max(0, -shift) : max(0, T - max(0, shift))].sum(1, dtype=torch.float64)
        dstep.addmm_(reached, w_in[:, :, j].double())
    return dstep
