"""The gated residual layer, the one layer that all five vocoders are made of. Time-major.

    a     = Σ_j W_in[:, :, j]·u(t + j·d - left) + b_in + cond         u = x + step, zeros outside the signal
    z     = tanh(a[:H])·σ(a[H:])
    r, s  = W_out·z + b_out                                            the first R rows, and the rest
    x'    = (x + r)·ρ,  or (u + r)·ρ with step_in_residual;            skip = s

    x (B, T, R)   w_in (2H, R, k)   b_in (2H,)   w_out (R + S, H)   b_out (R + S,)
    cond (B, T, 2H)   conditioning, projected already             step (B, R)   the diffusion-step bias of DiffWave
    -> x' (B, T, R), skip (B, T, S), a (B, T, 2H); a is kept for the gradient

All of one dtype; with float16 or bfloat16 samples the weights and biases may be float32, and their gradients then are too.
So it is under autocast: samples in autocast's dtype, weights as they are, sums in float32.

left is (k - 1)·d for a causal layer and half of it otherwise. With R = 0 rows less in W_out (w_out (S, H)) the layer is
a stack's last and gives no x': see layers/gated_residual_stack.py, which fills those rows with zeros instead.

van den Oord et al. 2016, "WaveNet", eq. 5 and figure 4; with step: Kong et al. 2021, "DiffWave", figure 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc import _C
from fastvoc._op import Op, Unsupported, autocast, launch, lazy, needs_grad, no_second_gradient
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.ops.gated_residual_bf16 import gated_residual_backward_bf16, gated_residual_bf16

LOWER = torch.float16, torch.bfloat16
OPTIONS = "dilation", "causal", "rho", "step_in_residual"


def _padding(kernel: int, dilation: int, causal: bool) -> tuple[int, int]:
    """Zeros before and after the signal."""
    reach = (kernel - 1) * dilation
    return (reach, 0) if causal else (reach // 2, reach // 2)


def _taps(u: Tensor, kernel: int, dilation: int, causal: bool) -> Tensor:
    """(B, T, R) -> (B, T, k·R): what each sample sees, side by side, so that the convolution is one matrix product."""
    T = u.shape[1]
    padded = F.pad(u, (0, 0, *_padding(kernel, dilation, causal)))
    return torch.cat([padded[:, j * dilation : j * dilation + T] for j in range(kernel)], 2)


def _untap(dtaps: Tensor, kernel: int, dilation: int, causal: bool) -> Tensor:
    """The transpose of _taps."""
    B, T, width = dtaps.shape
    R, (left, right) = width // kernel, _padding(kernel, dilation, causal)
    padded = dtaps.new_zeros(B, left + T + right, R)
    for j in range(kernel):
        padded[:, j * dilation : j * dilation + T] += dtaps[:, :, j * R : (j + 1) * R]
    return padded[:, left : left + T]


def gated_residual_reference(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
    R, k = w_in.shape[1:]
    w_in, b_in, w_out, b_out = (w.to(x.dtype) for w in (w_in, b_in, w_out, b_out))
    u = x if step is None else x + step[:, None]
    a = F.linear(_taps(u, k, dilation, causal), w_in.transpose(1, 2).flatten(1), b_in)
    if cond is not None:
        a = a + cond
    tanh, sigmoid = a.chunk(2, 2)
    out = F.linear(torch.tanh(tanh) * torch.sigmoid(sigmoid), w_out, b_out)
    return ((u if step_in_residual else x) + out[..., :R]) * rho, out[..., R:].contiguous(), a


def gated_residual_backward_reference(dx_out, dskip, x, a, w_in, w_out, step, dilation, causal, rho, step_in_residual):
    """-> dx, dw_in, db_in, dw_out, db_out, da (the gradient of cond), dstep (B, R)."""
    (G, R, k), dtype = w_in.shape, w_in.dtype
    w_in, w_out = w_in.to(x.dtype), w_out.to(x.dtype)
    u = x if step is None else x + step[:, None]
    t, s = torch.tanh(a[..., : G // 2]), torch.sigmoid(a[..., G // 2 :])
    dout = torch.cat([dx_out * rho, dskip], 2)
    dz = dout @ w_out
    da = torch.cat([dz * s * (1 - t * t), dz * t * s * (1 - s)], 2)
    rows = da.flatten(0, 1)
    dw_in = (rows.t() @ _taps(u, k, dilation, causal).flatten(0, 1)).view(G, k, R).transpose(1, 2).contiguous()
    du = _untap(da @ w_in.transpose(1, 2).flatten(1), k, dilation, causal)
    dx = du + dx_out * rho
    dstep = (dx if step_in_residual else du).sum(1)
    dout = dout.flatten(0, 1)
    of_weights = dw_in, rows.sum(0), dout.t() @ (t * s).flatten(0, 1), dout.sum(0)
    return dx, *(w.to(dtype) for w in of_weights), da, dstep


def _on_cpu(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    known = x, *(t for t in tensors if t is not None)
    if x.dtype not in (torch.float32, torch.bfloat16) or not all(t.is_cpu for t in known):
        raise Unsupported("float32 and bfloat16 on the CPU only")
    return [None if t is None else t.detach().contiguous() for t in (x, *tensors)]


def gated_residual_cpu(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
    """A stack of one layer (ops/gated_residual_stack.py), its weights packed for this call; bf16: gated_residual_bf16.py."""
    x, w_in, b_in, w_out, b_out, cond, step = _on_cpu(x, w_in, b_in, w_out, b_out, cond, step)
    if x.dtype == torch.bfloat16:
        left, _ = _padding(w_in.shape[2], dilation, causal)
        return gated_residual_bf16(x, w_in, b_in, w_out, b_out, cond, step, dilation, left, rho, step_in_residual)
    (B, T, R), G, S = x.shape, w_in.shape[0], w_out.shape[0] - x.shape[2]
    x_out, skip, a = _empty(x, B, T, R), _empty(x, B, T, S), _empty(x, B, T, G)
    if not x.numel():
        return x_out, skip, a
    arrays = [t[None].numpy() for t in (w_in, b_in, w_in.new_empty(G, 0), w_out, b_out)]
    packed = _C.GatedResidualStackPlan(*arrays, [dilation], causal, rho, step_in_residual, 0, _C.cpu_isa())
    threads = _C.get_num_threads()
    workspace = torch.empty(packed.workspace_bytes(B, T, threads), dtype=torch.uint8, device="cpu")
    address = lambda t: 0 if t is None else t.data_ptr()
    packed.run_layer(B, T, *[address(t) for t in (x, cond, step, x_out, skip, a, workspace)], threads)
    return x_out, skip, a


def gated_residual_backward_cpu(dx_out, dskip, x, a, w_in, w_out, step, dilation, causal, rho, step_in_residual):
    """csrc/cpu/gated_residual.cpp; the sums over time that are no products are torch's. bf16: gated_residual_bf16.py"""
    dx_out, dskip, x, a, w_in, w_out, step = _on_cpu(dx_out, dskip, x, a, w_in, w_out, step)
    (G, R, k), (B, T, _), S = w_in.shape, x.shape, dskip.shape[2]
    left, _ = _padding(k, dilation, causal)
    if x.dtype == torch.bfloat16:
        return gated_residual_backward_bf16(dx_out, dskip, x, a, w_in, w_out, step, dilation, left, rho, step_in_residual)
    u = x if step is None else x + step[:, None]
    residual = w_out.new_ones(R + S, 1)
    residual[:R] = rho
    z, da, dx = _empty(x, B, T, G // 2), torch.empty_like(a), torch.empty_like(x)
    dw_in, dw_out = _empty(x, k, G, R), torch.empty_like(w_out)
    du_sums = _empty(x, B, _C.gated_residual_backward_tiles(T, k, dilation), R)
    threads = _C.get_num_threads()
    workspace = torch.empty(_C.gated_residual_backward_bytes(R, G // 2, k, threads), dtype=torch.uint8, device="cpu")
    arrays = dx_out, dskip, u, a, _products_of(w_in), w_out * residual, z, da, dx, dw_in, dw_out, du_sums, workspace
    launch(_C.gated_residual_backward_cpu, *arrays, B, T, R, G // 2, S, k, dilation, left, rho, threads)
    dr = dx_out.sum(1) * rho
    db_out = torch.cat([dr.sum(0), dskip.flatten(0, 1).sum(0)])
    dstep = du_sums.sum(1) + dr if step_in_residual else du_sums.sum(1)
    return dx, dw_in.permute(1, 2, 0).contiguous(), da.flatten(0, 1).sum(0), dw_out * residual, db_out, da, dstep


def _products_of(w_in: Tensor) -> Tensor:
    """Tap after tap; of a kernel of 3 what minimal filtering of the gradient multiplies by (csrc/core/gated_residual.h)."""
    taps = w_in.permute(2, 0, 1)
    if len(taps) != 3:
        return taps.contiguous()
    outer, inner = (taps[0] + taps[2]) / 2, taps[1] / 2
    return torch.stack([taps[2], outer + inner, outer - inner, taps[0]])


def _empty(like: Tensor, *shape) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _fake(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
    B, T, R = x.shape
    return _empty(x, B, T, R), _empty(x, B, T, w_out.shape[0] - R), _empty(x, B, T, w_in.shape[0])


def _fake_backward(dx_out, dskip, x, a, w_in, w_out, step, dilation, causal, rho, step_in_residual):
    G, R, _ = w_in.shape
    return (
        _empty(x, *x.shape),
        _empty(w_in, *w_in.shape),
        _empty(w_in, G),
        _empty(w_in, *w_out.shape),
        _empty(w_in, w_out.shape[0]),
        _empty(x, *a.shape),
        _empty(x, x.shape[0], R),
    )


# B, T, R, half gate, S, k, dilation, causal, cond, step
CASES = {
    "wavenet layer, 1 s": (1, 16000, 64, 64, 128, 2, 128, True, True, False),
    "waveglow layer, 1 s": (1, 2756, 256, 256, 256, 3, 8, False, True, False),
    "parallel wavegan layer, 1 s": (1, 22050, 64, 64, 64, 3, 64, False, True, False),
    "diffwave layer, 1 s": (1, 22050, 64, 64, 64, 3, 64, False, True, True),
    "ragged": (3, 101, 7, 5, 9, 3, 4, False, True, True),
    "causal, kernel 5": (2, 67, 24, 12, 8, 5, 3, True, True, False),
    "no conditioning": (1, 33, 16, 16, 1, 3, 1, False, False, False),
    "shorter than its reach": (2, 3, 8, 8, 8, 3, 16, False, True, True),
    "single": (1, 1, 1, 1, 1, 2, 1, True, False, False),
}


def _inputs(B, T, R, H, S, k, dilation, causal, has_cond, has_step, *, rand):
    return (
        rand(B, T, R),
        rand(2 * H, R, k) / (k * R) ** 0.5,
        rand(2 * H) * 0.1,
        rand(R + S, H) / H**0.5,
        rand(R + S) * 0.1,
        rand(B, T, 2 * H) if has_cond else None,
        rand(B, R) if has_step else None,
        dilation,
        causal,
        0.5**0.5,
        False,
    )


def _backward_inputs(*case, rand):
    x, w_in, _, w_out, _, _, step, *rest = _inputs(*case, rand=rand)
    B, T, R = x.shape
    return rand(B, T, R), rand(B, T, w_out.shape[0] - R), x, rand(B, T, w_in.shape[0]), w_in, w_out, step, *rest


gated_residual_fwd = Op(
    "gated_residual(Tensor x, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, Tensor? cond, Tensor? step, "
    "int dilation, bool causal, float rho, bool step_in_residual) -> (Tensor, Tensor, Tensor)",
    reference=gated_residual_reference,
    fake=_fake,
    cpu=gated_residual_cpu,
    cpu_dtypes=(torch.float32, torch.bfloat16),
    triton=lazy("fastvoc.kernels.gated_residual", "gated_residual_triton"),
    inputs=_inputs,
    cases=CASES,
    public=lambda *args: gated_residual(*args[:7], **dict(zip(OPTIONS, args[7:]))),  # type: ignore[has-type]  # it stands below
    length_at=1,
)

gated_residual_bwd = Op(
    "gated_residual_backward(Tensor dx_out, Tensor dskip, Tensor x, Tensor a, Tensor w_in, Tensor w_out, Tensor? step, "
    "int dilation, bool causal, float rho, bool step_in_residual) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=gated_residual_backward_reference,
    fake=_fake_backward,
    cpu=gated_residual_backward_cpu,
    cpu_dtypes=(torch.float32, torch.bfloat16),
    triton=lazy("fastvoc.kernels.gated_residual_backward", "gated_residual_backward_triton"),
    inputs=_backward_inputs,
    cases=CASES,
    length_at=1,
)


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
        options = dilation, causal, rho, step_in_residual
        x_out, skip, a = gated_residual_fwd(x, w_in, b_in, w_out, b_out, cond, step, *options)
        ctx.save_for_backward(x, a, w_in, w_out, step)
        ctx.options, ctx.has_cond = options, cond is not None
        return x_out, skip

    @staticmethod
    def backward(ctx, dx_out, dskip):
        x, a, w_in, w_out, step = ctx.saved_tensors
        dx, dw_in, db_in, dw_out, db_out, da, dstep = _GatedResidualBackward.apply(
            dx_out.contiguous(), dskip.contiguous(), x, a, w_in, w_out, step, *ctx.options
        )
        none = None, None, None, None
        return dx, dw_in, db_in, dw_out, db_out, da if ctx.has_cond else None, None if step is None else dstep, *none


class _GatedResidualBackward(torch.autograd.Function):
    """A Function of its own, so that a second gradient is an error with a name and not a wrong number."""

    @staticmethod
    def forward(ctx, *args):
        return gated_residual_bwd(*args)

    @staticmethod
    def backward(ctx, *_):
        no_second_gradient("gated_residual")


@autocast("lower", wide=("w_in", "b_in", "w_out", "b_out"))
def gated_residual(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    cond: Tensor | None = None,
    step: Tensor | None = None,
    *,
    dilation: int = 1,
    causal: bool = False,
    rho: float = 1.0,
    step_in_residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """One gated residual layer with gradients: x (B, T, R) -> x' (B, T, R), skip (B, T, S). Shapes and dtypes: the top of
    this file.

    Raises ShapeError, DTypeError, DeviceError, ConfigError.
    """
    _check(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal)
    args = x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual
    if needs_grad(*[t for t in args[:7] if t is not None]):
        return _GatedResidual.apply(*args)
    return gated_residual_fwd(*args)[:2]


def _check(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal):
    if not x.is_floating_point():
        raise DTypeError(f"gated_residual: x is {x.dtype}, expected a floating point tensor.", hint="Use .float().")
    if x.dim() != 3 or w_in.dim() != 3 or x.shape[2] != w_in.shape[1]:
        raise ShapeError(
            f"gated_residual: x is {tuple(x.shape)} and w_in {tuple(w_in.shape)}; expected x (B, T, R), w_in (2H, R, k)",
            hint="x is time-major: transpose (B, R, T) with .transpose(1, 2).",
        )
    (B, T, R), (G, _, k) = x.shape, w_in.shape
    if G % 2 or not G:
        raise ShapeError(f"gated_residual: w_in has {G} rows; a tanh half and a sigmoid half must be even in number")
    if dilation < 1:
        raise ConfigError(f"gated_residual: dilation must be at least 1, got {dilation}")
    if not causal and k % 2 == 0:
        raise ConfigError(f"gated_residual: a non-causal layer needs an odd kernel, got {k}")
    if w_out.dim() != 2 or w_out.shape[1] != G // 2 or w_out.shape[0] < R:
        raise ShapeError(f"gated_residual: w_out is {tuple(w_out.shape)}, expected (R + S, {G // 2}) with R = {R}")
    expected = {"b_in": (b_in, (G,)), "b_out": (b_out, (w_out.shape[0],)), "cond": (cond, (B, T, G)), "step": (step, (B, R))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"gated_residual: {name} is {tuple(tensor.shape)}, expected {shape}")
    for name, tensor in {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out, "cond": cond, "step": step}.items():
        if tensor is None:
            continue
        master = tensor.dtype == torch.float32 and x.dtype in LOWER and name in ("w_in", "b_in", "w_out", "b_out")
        if tensor.dtype != x.dtype and not master:
            raise DTypeError(f"gated_residual: x is {x.dtype} but {name} is {tensor.dtype}.", hint=f"Use .to({x.dtype}).")
        if tensor.device != x.device:
            raise DeviceError(f"gated_residual: x is on {x.device} but {name} is on {tensor.device}.", hint="Use .to(device).")
