"""The gated residual stack in Triton, for inference. The contract is fastvoc/ops/gated_residual_stack.py.

One launch a layer (two where it is wide), with the conditioning's projection a part of the layer's matrix product, so
that the (B, T, L·2H) projected conditioning never exists. Two buffers take turns as the layers' input and output.
"""

from collections.abc import Sequence

import torch
from fastvoc.kernels.gated_residual import MAX_FUSED, gated_residual_launch, pack_taps
from fastvoc.kernels.launch import accept
from torch import Tensor

from fastvoc._op import Unsupported
from fastvoc.ops.gated_residual_stack import StackWeights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TritonPlan:
    """Packed weights on their device. Immutable after construction.

    precision: fp32 (true float32 products), fp16 or bf16 (weights, x and the gate; sums and the skips are float32).
    `run` neither allocates other than from torch's allocator nor waits for the device: it can be captured in a CUDA
    graph, after one run of the same size that is not (Triton compiles, and tunes, then).
    """

    backend = "triton"

    def __init__(self, weights: StackWeights, precision: str = "fp32", threads: int | None = None):
        w = weights
        accept(w.w_in)
        if precision not in DTYPES:
            raise Unsupported(f"precision {precision!r}; the Triton plan has {list(DTYPES)}")
        self.weights, self.precision, self.dtype = w, precision, DTYPES[precision]
        lower = lambda t: t.detach().to(self.dtype).contiguous()
        self.layers = [
            (pack_taps(lower(w_in)), lower(b_in), lower(w_out), lower(b_out), lower(w_cond) if w_cond.shape[1] else None)
            for w_in, b_in, w_out, b_out, w_cond in zip(w.w_in, w.b_in, w.w_out, w.b_out, w.w_cond)
        ]

    @torch.no_grad()
    def run(self, x: Tensor, cond: Tensor | Sequence[Tensor] | None = None, step: Tensor | None = None) -> Tensor:
        w = self.weights
        (B, T, R), out_dtype = x.shape, x.dtype
        S, H = w.n_skip, w.w_in.shape[1] // 2
        lower = lambda t: None if t is None else t.to(self.dtype).contiguous()
        x, step = lower(x), lower(step)
        conds = map(lower, cond) if w.cond_per_layer and cond is not None else [lower(cond)] * len(self.layers)
        new = lambda channels, dtype=self.dtype: torch.empty(B, T, channels, dtype=dtype, device=x.device)
        skip = new(S, torch.float32) if S else None
        if not x.numel():
            return (skip if S else x).to(out_dtype)
        z = new(H) if H > MAX_FUSED else None
        n_layers = len(self.layers)
        buffers = [new(R) for _ in range(min(2, n_layers))]
        for l, ((taps, b_in, w_out, b_out, w_cond), cond) in enumerate(zip(self.layers, conds)):
            last = l == n_layers - 1
            x_out = None if S and last else buffers[l % 2]  # the last x of a stack with skips goes nowhere
            gated_residual_launch(
                x, taps, b_in, w_out, b_out, cond, w_cond, None if step is None else step[:, l], x_out, skip, None, z,
                w.dilations[l], w.causal, w.rho, w.step_in_residual, "ieee", add_skip=l > 0,
            )  # fmt: skip
            x = x_out
        return (skip if S else x).to(out_dtype)
