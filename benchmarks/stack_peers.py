"""What else runs a gated residual stack: PyTorch in the ways its users have, and ONNX Runtime. Same weights as ours.

Each peer is a plan: `run(x (B, T, R), cond (B, T, C), step (B, L, R)) -> (B, T, S)`. Inside they are channels first, as the
public implementations are, with one conv1d where those have two side by side: an eager peer a little better than they are.
"""

import importlib.util
import io
from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import PeerUnavailable
from fastvoc.layers import GatedResidualStack
from fastvoc.ops.gated_residual_stack import StackWeights


class EagerStack(nn.Module):
    """The stack as PyTorch users write it.  x (B, R, T), cond (B, C, T), step (B, L, R) -> (B, S, T)"""

    def __init__(self, w: StackWeights):
        super().__init__()
        self.n_layers, self.residual, self.half = len(w.dilations), w.w_in.shape[2], w.w_in.shape[1] // 2
        self.kernel, self.causal, self.rho, self.step_in_residual = w.w_in.shape[3], w.causal, w.rho, w.step_in_residual
        self.dilations, self.n_skip = list(w.dilations), w.n_skip
        parts = {"w_in": w.w_in, "b_in": w.b_in, "w_cond": w.w_cond[..., None], "w_out": w.w_out[..., None], "b_out": w.b_out}
        for name, value in parts.items():
            setattr(self, name, nn.ParameterList(nn.Parameter(v.detach().clone(), False) for v in value))

    def forward(self, x: Tensor, cond: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        skips = None
        for l in range(self.n_layers):
            reach = (self.kernel - 1) * self.dilations[l]
            u = x if step is None else x + step[:, l, :, None]
            if self.causal:
                a = F.conv1d(F.pad(u, (reach, 0)), self.w_in[l], self.b_in[l], dilation=self.dilations[l])
            else:
                a = F.conv1d(u, self.w_in[l], self.b_in[l], padding=reach // 2, dilation=self.dilations[l])
            if cond is not None:
                a = a + F.conv1d(cond, self.w_cond[l])
            tanh, sigmoid = a.chunk(2, 1)
            out = F.conv1d(torch.tanh(tanh) * torch.sigmoid(sigmoid), self.w_out[l], self.b_out[l])
            if self.n_skip:
                s = out[:, self.residual :]
                skips = s if skips is None else skips + s
            x = ((u if self.step_in_residual else x) + out[:, : self.residual]) * self.rho
        return x if skips is None else skips


class ChannelsLastStack(nn.Module):
    """Every Conv1d as a channels-last Conv2d over (1, T): what makes PyTorch's bf16 fast. Arguments as EagerStack's."""

    def __init__(self, w: StackWeights, dtype: torch.dtype):
        super().__init__()
        self.inner, self.dtype = EagerStack(w), dtype
        for name in ("w_in", "w_cond", "w_out"):
            for p in getattr(self.inner, name):
                p.data = p.data[:, :, None].to(dtype, memory_format=torch.channels_last)
        for name in ("b_in", "b_out"):
            for p in getattr(self.inner, name):
                p.data = p.data.to(dtype)

    def forward(self, x: Tensor, cond: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        m = self.inner
        lay = lambda t: t[:, :, None].to(self.dtype, memory_format=torch.channels_last)
        x, skips = lay(x), None
        cond = None if cond is None else lay(cond)
        for l in range(m.n_layers):
            d = m.dilations[l]
            reach = (m.kernel - 1) * d
            u = x if step is None else x + step[:, l, :, None, None].to(self.dtype)
            if m.causal:
                a = F.conv2d(F.pad(u, (reach, 0)), m.w_in[l], m.b_in[l], dilation=(1, d))
            else:
                a = F.conv2d(u, m.w_in[l], m.b_in[l], padding=(0, reach // 2), dilation=(1, d))
            if cond is not None:
                a = a + F.conv2d(cond, m.w_cond[l])
            out = F.conv2d(torch.tanh(a[:, : m.half]) * torch.sigmoid(a[:, m.half :]), m.w_out[l], m.b_out[l])
            if m.n_skip:
                s = out[:, m.residual :]
                skips = s if skips is None else skips + s
            x = ((u if m.step_in_residual else x) + out[:, : m.residual]) * m.rho
        return (x if skips is None else skips)[:, :, 0].float()


class Bf16Stack(nn.Module):
    """EagerStack after `.to(torch.bfloat16)`, as most users would try it."""

    def __init__(self, w: StackWeights):
        super().__init__()
        self.inner = EagerStack(w).to(torch.bfloat16)

    def forward(self, *given: Tensor | None) -> Tensor:
        return self.inner(*(None if t is None else t.to(torch.bfloat16) for t in given)).float()


class PeerPlan:
    """A channels-first network behind the interface of our plans."""

    def __init__(self, network):
        self.network = network

    @torch.inference_mode()
    def run(self, x: Tensor, cond: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        first = lambda t: None if t is None else t.transpose(1, 2)
        return self.network(first(x), first(cond), step).transpose(1, 2)


class FrozenPlan(PeerPlan):
    """torch.jit: traced, frozen and optimised for inference, once per shape as a server would."""

    def __init__(self, w: StackWeights):
        self.stack, self.traced = EagerStack(w).eval(), {}
        super().__init__(self._call)

    def _call(self, x, cond, step):
        given = [t.contiguous() for t in (x, cond, step) if t is not None]
        key = tuple(tuple(t.shape) for t in given)
        if key not in self.traced:
            names = [n for n, t in (("x", x), ("cond", cond), ("step", step)) if t is not None]
            wrapped = _Named(self.stack, names).eval()
            self.traced[key] = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(wrapped, tuple(given))))
            for _ in range(3):  # the profiling executor settles
                self.traced[key](*given)
        return self.traced[key](*given)


class CompiledPlan(PeerPlan):
    """torch.compile with its default backend, static shapes."""

    def __init__(self, w: StackWeights):
        super().__init__(torch.compile(EagerStack(w).eval(), dynamic=False))


class OnnxPlan(PeerPlan):
    """ONNX Runtime on the exported graph, with as many threads as torch has when it is first called."""

    def __init__(self, w: StackWeights):
        for name in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                raise PeerUnavailable(f"{name} is not installed")
        self.stack, self.sessions = EagerStack(w).eval(), {}
        super().__init__(self._call)

    def _call(self, x, cond, step):
        import onnxruntime

        given = {n: t.contiguous() for n, t in (("x", x), ("cond", cond), ("step", step)) if t is not None}
        key = torch.get_num_threads(), tuple(tuple(t.shape) for t in given.values())
        if key not in self.sessions:
            buffer = io.BytesIO()
            with torch.no_grad():
                torch.onnx.export(_Named(self.stack, list(given)), tuple(given.values()), buffer, input_names=list(given),
                                  output_names=["y"], dynamo=False)  # fmt: skip
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.sessions[key] = onnxruntime.InferenceSession(buffer.getvalue(), options, ["CPUExecutionProvider"])
        (y,) = self.sessions[key].run(None, {n: t.numpy() for n, t in given.items()})
        return torch.from_numpy(y)


class _Named(nn.Module):
    """The stack with just the inputs that it is given, in order: neither tracing nor ONNX has absent ones."""

    def __init__(self, stack: nn.Module, names: list[str]):
        super().__init__()
        self.stack, self.names = stack, names

    def forward(self, *given):
        return self.stack(**dict(zip(self.names, given)))


PEERS = {  # name -> (precision, plan of weights)
    "PyTorch eager": ("fp32", lambda w: PeerPlan(EagerStack(w).eval())),
    "torch.jit frozen": ("fp32", FrozenPlan),
    "torch.compile": ("fp32", CompiledPlan),
    "ONNX Runtime": ("fp32", OnnxPlan),
    "PyTorch eager, bf16": ("bf16", lambda w: PeerPlan(Bf16Stack(w).eval())),
    "PyTorch channels-last": ("fp32", lambda w: PeerPlan(ChannelsLastStack(w, torch.float32))),
    "PyTorch channels-last, bf16": ("bf16", lambda w: PeerPlan(ChannelsLastStack(w, torch.bfloat16))),
}

QUICK = ("PyTorch eager", "PyTorch eager, bf16", "PyTorch channels-last, bf16")  # with --quick these alone


def tried(make: Callable[[], Callable], around: Callable) -> tuple[Callable | None, str]:
    """What `make` made of a peer, if that runs; else None, and why the peer cannot be timed."""
    try:
        run = make()
        with around():
            run()
    except PeerUnavailable as reason:
        return None, str(reason)
    except Exception as reason:  # a peer that does not run is a fact about it, not about us
        return None, f"{type(reason).__name__}: {str(reason).strip()[:300]}"
    return run, ""


def stacks_of(model: nn.Module) -> list[GatedResidualStack]:
    return [m for m in model.modules() if isinstance(m, GatedResidualStack)]


@contextmanager
def running(stacks: list[GatedResidualStack], plans: list):
    """The model's stacks run by these plans instead of ours, for a block; the rest of the model is as it is."""
    for stack, plan in zip(stacks, plans, strict=True):
        stack.infer = lambda x, cond=None, step=None, plan=plan, head=None, **_: _behind(plan.run(x, cond, step), head)
        stack.project = lambda cond, *_, **__: cond
    try:
        with (
            patch("fastvoc.models.parallel_wavegan.at_frame_rate", lambda *_: None),  # they take it at the sample rate
            patch("fastvoc._torch_threads._limits", list),  # none: torch has all threads throughout
        ):
            yield
    finally:
        for stack in stacks:
            del stack.infer, stack.project


def _behind(y: Tensor, head: nn.Conv1d | None) -> Tensor:
    """What we fold into our stack, as the upstream has it: a convolution of its own."""
    return y if head is None else F.linear(y, head.weight[:, :, 0], head.bias)
