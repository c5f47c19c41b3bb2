"""The gated residual layer in Triton. The contract is fastvoc/ops/gated_residual.py.

With 64 channels a layer moves about as much as it computes, so it is one kernel: the dilated convolution as matrix
products over the taps, the gate in registers, and the 1×1 product on the gate's tile, which nothing else ever reads.
With more than MAX_FUSED half-gate channels the gate's tile no longer fits beside its accumulators; the gate then goes
through memory, to a second kernel that is a plain matrix product with the residual and the skip in its epilogue.

Offsets are a 64-bit tile base plus 32-bit offsets inside the tile. A tile never crosses from one sequence to the next.
Channels are constants of a model and of the machine code. Lengths and dilations are not, and Triton is told not to
compile anew for those that are 1 or divisible by 16: rows are aligned by their channels alone.
"""

import torch
import triton
import triton.language as tl
from fastvoc.kernels.configurations import GATE, LAYER, PRODUCT
from fastvoc.kernels.gates import gate
from fastvoc.kernels.launch import Tuned, accept, dot_precision, on_device_of, tuning_key
from torch import Tensor

from fastvoc._op import Unsupported

MAX_FUSED = 64


@triton.jit
def tile_of(pid, T, BLOCK_T: tl.constexpr):
    """-> the sequence, the tile's first sample, and that sample's row among all rows (64-bit)"""
    n_tiles = tl.cdiv(T, BLOCK_T)
    b = pid // n_tiles
    t0 = (pid % n_tiles) * BLOCK_T
    return b, t0, b.to(tl.int64) * T + t0


@triton.jit
def shifted_input(
    x_ptr, step_ptr, b, t0, row, shift, c, T, step_stride, R: tl.constexpr, HAS_STEP: tl.constexpr, BLOCK_T: tl.constexpr
):
    """(BLOCK_T, BLOCK_C) of u(t + shift) = x + step, zeros outside the signal."""
    i = tl.arange(0, BLOCK_T)
    t = t0 + i + shift
    inside = ((t >= 0) & (t < T))[:, None] & (c < R)[None, :]
    u = tl.load(x_ptr + (row + shift) * R + (i[:, None] * R + c[None, :]), mask=inside, other=0.0)
    if HAS_STEP:
        e = tl.load(step_ptr + b.to(tl.int64) * step_stride + c, mask=c < R, other=0.0)
        u = tl.where(inside, u.to(tl.float32) + e.to(tl.float32)[None, :], 0.0).to(x_ptr.dtype.element_ty)
    return u


@triton.jit
def gated(
    x_ptr, w_in_ptr, b_in_ptr, cond_ptr, w_cond_ptr, step_ptr, a_ptr, b, t0, row, h, T, dilation, left, step_stride,
    R: tl.constexpr, H: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, COND: tl.constexpr, HAS_STEP: tl.constexpr,
    KEEP_A: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """(BLOCK_T, BLOCK_H) of z, float32; channels past H are zero. w_in is (k, 2H, R): see pack_taps."""
    i = tl.arange(0, BLOCK_T)
    inside_h = h < H
    tanh_half = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    sigmoid_half = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    BLOCKS: tl.constexpr = (R + BLOCK_C - 1) // BLOCK_C
    for n in range(KERNEL * BLOCKS):  # one loop over taps and channels, so that loads run ahead across taps
        tap = n // BLOCKS
        c = (n % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
        u = shifted_input(x_ptr, step_ptr, b, t0, row, tap * dilation - left, c, T, step_stride, R, HAS_STEP, BLOCK_T)
        w = w_in_ptr + tap * (2 * H * R) + (h[None, :] * R + c[:, None])
        mask = (c < R)[:, None] & inside_h[None, :]
        tanh_half = tl.dot(u, tl.load(w, mask=mask, other=0.0), tanh_half, input_precision=PRECISION)
        sigmoid_half = tl.dot(u, tl.load(w + H * R, mask=mask, other=0.0), sigmoid_half, input_precision=PRECISION)
    inside = (t0 + i < T)[:, None] & inside_h[None, :]
    if COND == "projected":  # cond (B, T, C), w_cond (2H, C)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            rows = cond_ptr + row * C + (i[:, None] * C + c[None, :])
            v = tl.load(rows, mask=(t0 + i < T)[:, None] & (c < C)[None, :], other=0.0)
            w = w_cond_ptr + (h[None, :] * C + c[:, None])
            mask = (c < C)[:, None] & inside_h[None, :]
            tanh_half = tl.dot(v, tl.load(w, mask=mask, other=0.0), tanh_half, input_precision=PRECISION)
            sigmoid_half = tl.dot(v, tl.load(w + H * C, mask=mask, other=0.0), sigmoid_half, input_precision=PRECISION)
    at = row * (2 * H) + (i[:, None] * (2 * H) + h[None, :])
    if COND == "added":  # cond (B, T, 2H)
        tanh_half += tl.load(cond_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sigmoid_half += tl.load(cond_ptr + at + H, mask=inside, other=0.0).to(tl.float32)
    tanh_half += tl.load(b_in_ptr + h, mask=inside_h, other=0.0).to(tl.float32)[None, :]
    sigmoid_half += tl.load(b_in_ptr + H + h, mask=inside_h, other=0.0).to(tl.float32)[None, :]
    if KEEP_A:
        tl.store(a_ptr + at, tanh_half, mask=inside)
        tl.store(a_ptr + at + H, sigmoid_half, mask=inside)
    return gate(tanh_half, sigmoid_half)


@triton.jit
def store_residual(
    out, x_ptr, b_out_ptr, step_ptr, x_out_ptr, b, t0, row, o, T, rho, step_stride,
    R: tl.constexpr, STEP_IN_RESIDUAL: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_T)
    inside = (t0 + i < T)[:, None] & (o < R)[None, :]
    at = row * R + (i[:, None] * R + o[None, :])
    out += tl.load(b_out_ptr + o, mask=o < R, other=0.0).to(tl.float32)[None, :]
    out += tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if STEP_IN_RESIDUAL:
        e = tl.load(step_ptr + b.to(tl.int64) * step_stride + o, mask=o < R, other=0.0)
        out += e.to(tl.float32)[None, :]
    tl.store(x_out_ptr + at, out * rho, mask=inside)


@triton.jit
def store_skip(
    out, b_out_ptr, skip_ptr, t0, row, o, T, R: tl.constexpr, S: tl.constexpr, ADD_SKIP: tl.constexpr, BLOCK_T: tl.constexpr
):
    i = tl.arange(0, BLOCK_T)
    inside = (t0 + i < T)[:, None] & (o < S)[None, :]
    at = skip_ptr + row * S + (i[:, None] * S + o[None, :])
    out += tl.load(b_out_ptr + R + o, mask=o < S, other=0.0).to(tl.float32)[None, :]
    if ADD_SKIP:
        out += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, out, mask=inside)


@triton.jit(do_not_specialize=["T", "dilation", "left", "step_stride"])
def layer_kernel(
    x_ptr, w_in_ptr, b_in_ptr, w_out_ptr, b_out_ptr, cond_ptr, w_cond_ptr, step_ptr, x_out_ptr, skip_ptr, a_ptr,
    T, dilation, left, rho, step_stride,
    R: tl.constexpr, H: tl.constexpr, S: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, COND: tl.constexpr,
    HAS_STEP: tl.constexpr, STEP_IN_RESIDUAL: tl.constexpr, KEEP_A: tl.constexpr, KEEP_X: tl.constexpr,
    ADD_SKIP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The whole layer, for H ≤ BLOCK_H."""
    b, t0, row = tile_of(tl.program_id(0), T, BLOCK_T)
    h = tl.arange(0, BLOCK_H)
    z = gated(
        x_ptr, w_in_ptr, b_in_ptr, cond_ptr, w_cond_ptr, step_ptr, a_ptr, b, t0, row, h, T, dilation, left, step_stride,
        R, H, C, KERNEL, COND, HAS_STEP, KEEP_A, PRECISION, BLOCK_T, BLOCK_C, BLOCK_H,
    ).to(w_out_ptr.dtype.element_ty)  # fmt: skip
    if KEEP_X:
        for o0 in range(0, R, BLOCK_O):
            o = o0 + tl.arange(0, BLOCK_O)
            mask = (h < H)[:, None] & (o < R)[None, :]
            w = tl.load(w_out_ptr + (o[None, :] * H + h[:, None]), mask=mask, other=0.0)
            out = tl.dot(z, w, input_precision=PRECISION)
            store_residual(
                out, x_ptr, b_out_ptr, step_ptr, x_out_ptr, b, t0, row, o, T, rho, step_stride, R, STEP_IN_RESIDUAL, BLOCK_T
            )
    for o0 in range(0, S, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        mask = (h < H)[:, None] & (o < S)[None, :]
        w = tl.load(w_out_ptr + R * H + (o[None, :] * H + h[:, None]), mask=mask, other=0.0)
        out = tl.dot(z, w, input_precision=PRECISION)
        store_skip(out, b_out_ptr, skip_ptr, t0, row, o, T, R, S, ADD_SKIP, BLOCK_T)


@triton.jit(do_not_specialize=["T", "dilation", "left", "step_stride"])
def gate_kernel(
    x_ptr, w_in_ptr, b_in_ptr, cond_ptr, w_cond_ptr, step_ptr, z_ptr, a_ptr, T, dilation, left, step_stride,
    R: tl.constexpr, H: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, COND: tl.constexpr, HAS_STEP: tl.constexpr,
    KEEP_A: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """z (B, T, H), for any H."""
    b, t0, row = tile_of(tl.program_id(0), T, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    z = gated(
        x_ptr, w_in_ptr, b_in_ptr, cond_ptr, w_cond_ptr, step_ptr, a_ptr, b, t0, row, h, T, dilation, left, step_stride,
        R, H, C, KERNEL, COND, HAS_STEP, KEEP_A, PRECISION, BLOCK_T, BLOCK_C, BLOCK_H,
    )  # fmt: skip
    i = tl.arange(0, BLOCK_T)
    inside = (t0 + i < T)[:, None] & (h < H)[None, :]
    tl.store(z_ptr + row * H + (i[:, None] * H + h[None, :]), z, mask=inside)


@triton.jit(do_not_specialize=["T", "step_stride"])
def out_kernel(
    x_ptr, z_ptr, w_out_ptr, b_out_ptr, step_ptr, x_out_ptr, skip_ptr, T, rho, step_stride,
    R: tl.constexpr, H: tl.constexpr, S: tl.constexpr, STEP_IN_RESIDUAL: tl.constexpr, KEEP_X: tl.constexpr,
    ADD_SKIP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """x' and skip from z. The first programs along the second axis have tiles of x', the others of skip."""
    b, t0, row = tile_of(tl.program_id(0), T, BLOCK_T)
    X_BLOCKS: tl.constexpr = (R + BLOCK_O - 1) // BLOCK_O if KEEP_X else 0
    block = tl.program_id(1)
    residual = block < X_BLOCKS
    first = tl.where(residual, block, block - X_BLOCKS) * BLOCK_O
    width = tl.where(residual, R, S)
    o = first + tl.arange(0, BLOCK_O)
    w_rows = w_out_ptr + tl.where(residual, 0, R * H)
    i = tl.arange(0, BLOCK_T)
    out = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for h0 in range(0, H, BLOCK_C):
        h = h0 + tl.arange(0, BLOCK_C)
        z = z_ptr + row * H + (i[:, None] * H + h[None, :])
        z = tl.load(z, mask=(t0 + i < T)[:, None] & (h < H)[None, :], other=0.0)
        mask = (h < H)[:, None] & (o < width)[None, :]
        w = tl.load(w_rows + (o[None, :] * H + h[:, None]), mask=mask, other=0.0)
        out = tl.dot(z, w, out, input_precision=PRECISION)
    if residual:
        store_residual(
            out, x_ptr, b_out_ptr, step_ptr, x_out_ptr, b, t0, row, o, T, rho, step_stride, R, STEP_IN_RESIDUAL, BLOCK_T
        )
    else:
        store_skip(out, b_out_ptr, skip_ptr, t0, row, o, T, R, S, ADD_SKIP, BLOCK_T)


layer_tuned = Tuned(layer_kernel, LAYER)
gate_tuned = Tuned(gate_kernel, GATE)
out_tuned = Tuned(out_kernel, PRODUCT)


def pack_taps(w_in: Tensor) -> Tensor:
    """(2H, R, k) -> (k, 2H, R): a tap's matrix in one piece."""
    return w_in.permute(2, 0, 1).contiguous()


def reach_left(kernel: int, dilation: int, causal: bool) -> int:
    reach = (kernel - 1) * dilation
    return reach if causal else reach // 2


def check_offsets(T: int, R: int, half_gate: int, skip: int, reach: int) -> None:
    """Inside a tile offsets are 32-bit; samples are counted in 32 bits."""
    if T + reach + 1024 >= 2**31 or (1024 + reach) * max(R, 2 * half_gate, skip) >= 2**31:
        raise Unsupported(f"{T} samples, dilated by {reach}: offsets inside a tile pass 2³¹")


def gated_residual_launch(
    x, taps, b_in, w_out, b_out, cond, w_cond, step, x_out, skip, a, z, dilation, causal, rho, step_in_residual, precision,
    add_skip=False,
):  # fmt: skip
    """One layer on packed taps (k, 2H, R), into given outputs; those that are None are not wanted.

    w_cond (2H, C) makes cond (B, T, C) a part of the product.   step: a (B, R) view whose rows are contiguous.
    z (B, T, H): workspace, needed where H > MAX_FUSED.   add_skip: skip += instead of skip =.
    """
    (B, T, R), (k, G, _) = x.shape, taps.shape
    H, S = G // 2, w_out.shape[0] - R
    left = reach_left(k, dilation, causal)
    check_offsets(T, R, H, S, (k - 1) * dilation)
    gate_sizes = {
        "R": R,
        "H": H,
        "C": 0 if w_cond is None else w_cond.shape[1],
        "KERNEL": k,
        "COND": "none" if cond is None else "added" if w_cond is None else "projected",
        "HAS_STEP": step is not None,
        "KEEP_A": a is not None,
        "PRECISION": precision,
    }
    out_sizes = {
        "S": S if skip is not None else 0,
        "STEP_IN_RESIDUAL": step_in_residual and step is not None,
        "KEEP_X": x_out is not None,
        "ADD_SKIP": add_skip,
    }
    step_stride = 0 if step is None else step.stride(0)
    key = tuning_key(B * T, *gate_sizes.values(), *out_sizes.values())
    tiles = lambda c: B * triton.cdiv(T, c["BLOCK_T"])
    with on_device_of(x):
        if H <= MAX_FUSED:
            layer_tuned(
                key, lambda c: (tiles(c),),
                x, taps, b_in, w_out, b_out, cond, w_cond, step, x_out, skip, a, T, dilation, left, rho, step_stride,
                accumulates=skip if add_skip else None,
                **gate_sizes, **out_sizes, BLOCK_H=max(16, triton.next_power_of_2(H)),
            )  # fmt: skip
            return
        gate_tuned(
            key, lambda c: (tiles(c), triton.cdiv(H, c["BLOCK_H"])),
            x, taps, b_in, cond, w_cond, step, z, a, T, dilation, left, step_stride, **gate_sizes,
        )  # fmt: skip
        n_x = R if out_sizes["KEEP_X"] else 0
        blocks = lambda c: triton.cdiv(n_x, c["BLOCK_O"]) + triton.cdiv(out_sizes["S"], c["BLOCK_O"])
        if n_x + out_sizes["S"]:
            out_tuned(
                key, lambda c: (tiles(c), blocks(c)), x, z, w_out, b_out, step, x_out, skip, T, rho, step_stride,
                accumulates=skip if add_skip else None, R=R, H=H, PRECISION=precision, **out_sizes,
            )  # fmt: skip


def gated_residual_triton(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
    lower = (w.to(x.dtype) for w in (w_in, b_in, w_out, b_out))
    x, w_in, b_in, w_out, b_out, cond, step = accept(x, *lower, cond, step)
    (B, T, R), G = x.shape, w_in.shape[0]
    new = lambda channels: torch.empty(B, T, channels, dtype=x.dtype, device=x.device)
    x_out, skip, a = new(R), new(w_out.shape[0] - R), new(G)
    z = new(G // 2) if G // 2 > MAX_FUSED else None
    if x.numel():
        gated_residual_launch(
            x, pack_taps(w_in), b_in, w_out, b_out, cond, None, step, x_out, skip, a, z, dilation, causal, rho,
            step_in_residual, dot_precision(x.dtype),
        )  # fmt: skip
    return x_out, skip, a
