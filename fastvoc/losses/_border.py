"""The border every loss shares: what may come in, which samples count, and how they are summed.

    lengths    (B,)  valid samples of each item; the rest is padding and may hold anything, NaN included
    reduction  "none"  (B, T), 0 in the padding
               "sum"   scalar
               "mean"  scalar, over the valid samples of the whole batch, not over the items' means
"""

import math

import torch
from torch import Tensor

from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError

REDUCTIONS = ("none", "mean", "sum")
LOG_SCALE_FLOOR = -40.0  # exp(-2 log_scale) of the Gaussians leaves float32 at -44


def check_prediction(
    params: Tensor, target: Tensor, reduction: str, name: str = "params", target_name: str = "target"
) -> None:
    """Raises unless params is (B, C, T) float32 or float64 and target (B, T) on the same device."""
    for label, value in ((name, params), (target_name, target)):
        if not isinstance(value, Tensor):
            raise DTypeError(f"{label} must be a torch.Tensor, got {type(value).__name__}.",
                             hint="Wrap it with torch.as_tensor().")
    if params.ndim != 3 or 0 in params.shape:
        raise ShapeError(f"{name} must be (B, C, T) with no empty axis, got {tuple(params.shape)}.",
                         hint="Put channels on axis 1, time last.")
    B, _, T = params.shape
    if target.shape != (B, T):
        if target.shape == (B, T, 1):
            hint = f"Drop the last axis: {target_name}.squeeze(-1)."
        elif target.shape == (B, 1, T):
            hint = f"Drop the channel axis: {target_name}.squeeze(1)."
        else:
            hint = f"Cut or shift so that {name}[:, :, t] describes {target_name}[:, t]."
        raise ShapeError(f"{target_name} must be (B, T) = {(B, T)} to go with {name} {tuple(params.shape)}, "
                         f"got {tuple(target.shape)}.", hint=hint)
    if params.dtype not in (torch.float32, torch.float64):
        raise DTypeError(f"{name} must be float32 or float64, got {params.dtype}: one sample's likelihood is finer "
                         "than half precision.", hint=f"Pass {name}.float().")
    if target.device != params.device:
        raise DeviceError(f"{name} is on {params.device} but {target_name} on {target.device}.",
                          hint=f"Pass {target_name}.to({name}.device).")
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.",
                          hint='Use "mean" for training.')


def check_waveform(params: Tensor, target: Tensor) -> None:
    if target.dtype != params.dtype:
        raise DTypeError(f"target must have the dtype of params, {params.dtype}, got {target.dtype}.",
                         hint="Pass target.to(params.dtype), a waveform in [-1, 1].")


def check_mixture(params: Tensor) -> None:
    if params.shape[1] % 3:
        raise ShapeError(f"params must have 3K channels [logits | means | log_scales], got {params.shape[1]}.",
                         hint="Set the network's out_channels to 3 times the number of mixture components.")


def check_log_scale_min(log_scale_min: float) -> None:
    if isinstance(log_scale_min, bool) or not isinstance(log_scale_min, (int, float)):
        raise ConfigError(f"log_scale_min must be a number, got {log_scale_min!r}.", hint="r9y9 uses -7.0 and -16.0.")
    if not LOG_SCALE_FLOOR <= log_scale_min < math.inf:
        raise ConfigError(f"log_scale_min must be finite and at least {LOG_SCALE_FLOOR}, got {log_scale_min}.",
                          hint="It is the natural logarithm of the smallest scale; r9y9 uses -7.0 and -16.0.")


def valid_mask(lengths: Tensor | None, params: Tensor) -> Tensor | None:
    """(B, T) bool, True where a sample counts; None where all do. Lengths on the CPU cost no device synchronisation."""
    if lengths is None:
        return None
    B, _, T = params.shape
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise DTypeError(f"lengths must be an int64 or int32 tensor, got {got}.",
                         hint="Pass torch.tensor([...]), one length in samples for each item.")
    if lengths.shape != (B,):
        raise ShapeError(f"lengths must be (B,) = {(B,)}, got {tuple(lengths.shape)}.",
                         hint="One length for each item.")
    bad = (lengths < 1) | (lengths > T)
    if bad.any():
        b = int(bad.nonzero()[0])
        raise ShapeError(f"lengths[{b}] must be between 1 and T = {T}, got {int(lengths[b])}.",
                         hint="Count samples, not frames, and drop empty items.")
    return torch.arange(T, device=params.device) < lengths.to(params.device)[:, None]


def clear_padding(mask: Tensor | None, params: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    # Before the loss, not after: a NaN that is masked only in the result still gives NaN · 0 in the gradient.
    if mask is None:
        return params, target
    return params.masked_fill(~mask[:, None], 0), target.masked_fill(~mask, 0)


def reduce(nll: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """nll (B, T) -> as reduction says."""
    if mask is not None:
        nll = nll.masked_fill(~mask, 0)
    if reduction == "none":
        return nll
    if reduction == "sum":
        return nll.sum()
    return nll.mean() if mask is None else nll.sum() / mask.sum()
