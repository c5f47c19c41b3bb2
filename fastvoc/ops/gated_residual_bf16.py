"""The gated residual layer in bf16 on the CPU: bf16 samples, float32 weights and sums. The contract is gated_residual.py's.

csrc/cpu/gated_residual_bf16.cpp wants whole vectors: other widths are padded with zeros here, for which the gate gives
zeros again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc import _C
from fastvoc._op import launch


class _Widths:
    """R, H and S rounded up to what the instruction set in use reads at once; what pads tensors, and cuts them again."""

    def __init__(self, R: int, H: int, S: int):
        unit = _C.gated_residual_bf16_unit()
        self.true, self.R, self.H, self.S = (R, H, S), *(-(-n // unit) * unit for n in (R, H, S))
        self.as_they_are = self.true == (self.R, self.H, self.S)

    def residual(self, t: Tensor) -> Tensor:
        return F.pad(t, (0, self.R - self.true[0]))

    def skip(self, t: Tensor) -> Tensor:
        return F.pad(t, (0, self.S - self.true[2]))

    def gate(self, t: Tensor) -> Tensor:
        """(…, 2H): each half."""
        return F.pad(t.unflatten(-1, (2, self.true[1])), (0, self.H - self.true[1])).flatten(-2)

    def w_in(self, w: Tensor) -> Tensor:
        R, H, _ = self.true
        return F.pad(w.unflatten(0, (2, H)), (0, 0, 0, self.R - R, 0, self.H - H)).flatten(0, 1)

    def rows_out(self, w: Tensor) -> Tensor:
        """(R + S, …)"""
        R, _, S = self.true
        pad = lambda t, n: F.pad(t, (*[0, 0] * (t.dim() - 1), 0, n))
        return torch.cat([pad(w[:R], self.R - R), pad(w[R:], self.S - S)])

    def w_out(self, w: Tensor) -> Tensor:
        return F.pad(self.rows_out(w), (0, self.H - self.true[1]))

    def cut_gate(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (2, self.H))[..., : self.true[1]].flatten(-2)

    def cut_rows_out(self, w: Tensor) -> Tensor:
        R, _, S = self.true
        return torch.cat([w[:R], w[self.R : self.R + S]])


def _sizes(u: Tensor, widths: _Widths, kernel: int, dilation: int, left: int, rho: float) -> tuple:
    return *u.shape[:2], widths.R, widths.H, widths.S, kernel, dilation, left, rho, _C.get_num_threads()


def _workspace(sizes: tuple, gradient: bool) -> Tensor:
    B, T, R, H, S, k, *_, threads = sizes
    return torch.empty(_C.gated_residual_bf16_bytes(gradient, B, T, R, H, S, k, threads), dtype=torch.uint8, device="cpu")


def gated_residual_bf16(x, w_in, b_in, w_out, b_out, cond, step, dilation, left, rho, step_in_residual):
    (B, T, R), (G, _, k) = x.shape, w_in.shape
    widths = _Widths(R, G // 2, w_out.shape[0] - R)
    w_in, b_in, w_out, b_out = (w.float() for w in (w_in, b_in, w_out, b_out))
    u = x if step is None else x + step[:, None]
    before = u if step_in_residual else x
    if not widths.as_they_are:
        before, u, cond = widths.residual(before), widths.residual(u), None if cond is None else widths.gate(cond)
        w_in, b_in, w_out, b_out = widths.w_in(w_in), widths.gate(b_in), widths.w_out(w_out), widths.rows_out(b_out)
    sizes = _sizes(u, widths, k, dilation, left, rho)
    x_out, skip, a = (x.new_empty(B, T, n) for n in (widths.R, widths.S, 2 * widths.H))
    given = w_in, b_in, w_out, b_out, before, u, 0 if cond is None else cond
    if x.numel():
        launch(_C.gated_residual_bf16_cpu, *given, x_out, skip, a, _workspace(sizes, False), *sizes)
    if not widths.as_they_are:
        cut = lambda t, n: t[..., :n].contiguous()
        x_out, skip, a = cut(x_out, R), cut(skip, widths.true[2]), widths.cut_gate(a)
    return x_out, skip, a


def gated_residual_backward_bf16(dx_out, dskip, x, a, w_in, w_out, step, dilation, left, rho, step_in_residual):
    (B, T, R), (G, _, k), dtype = x.shape, w_in.shape, w_in.dtype
    widths = _Widths(R, G // 2, w_out.shape[0] - R)
    w_in, w_out, dr = w_in.float(), w_out.float(), dx_out
    u = x if step is None else x + step[:, None]
    if not widths.as_they_are:
        dx_out, dskip, u, a = widths.residual(dx_out), widths.skip(dskip), widths.residual(u), widths.gate(a)
        w_in, w_out = widths.w_in(w_in), widths.w_out(w_out)
    sizes = _sizes(u, widths, k, dilation, left, rho)
    da, dx = torch.empty_like(a), torch.empty_like(u)
    dw_in, dw_out, db_in, db_out = (w_in.new_zeros(n) for n in (w_in.shape, w_out.shape, w_in.shape[:1], w_out.shape[:1]))
    du_sums = w_in.new_zeros(B, -(-T // _C.gated_residual_bf16_tile()), widths.R)
    given = dx_out, dskip, u, a
    made = da, dx, dw_in, db_in, dw_out, db_out, du_sums
    if x.numel():
        launch(_C.gated_residual_bf16_backward_cpu, w_in, w_out, *given, *made, _workspace(sizes, True), *sizes)
    dstep = du_sums.sum(1)[:, :R]
    if step_in_residual:
        dstep = dstep + dr.sum(1, dtype=torch.float32) * rho
    if not widths.as_they_are:
        H = G // 2
        dx, da = dx[..., :R].contiguous(), widths.cut_gate(da)
        dw_in = dw_in.unflatten(0, (2, widths.H))[:, :H, :R].flatten(0, 1)
        dw_out, db_in, db_out = widths.cut_rows_out(dw_out)[:, :H], widths.cut_gate(db_in), widths.cut_rows_out(db_out)
    own = lambda t, like: t.to(like).contiguous()
    return dx, own(dw_in, dtype), own(db_in, dtype), own(dw_out, dtype), own(db_out, dtype), da, own(dstep, x.dtype)
