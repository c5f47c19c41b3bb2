"""WaveNet generation with explicit state: a plan holds packed weights, a stream's state is a tensor of the caller's.

    x = act(b + Σ_j E_j[y(t-1-j)])                             E_j: a row per class, or one column for sample values
    a = Σ_j W_in[j]·x(t - (k-1-j)·d) + W_cond·c(t) + b_in      for each layer, dilation d
    z = tanh(a[:H])·σ(a[H:]);  x ← (x + W_res·z + b_res)·ρ
    y ~ head(W_logits·relu(W_hidden·relu(Σ_l W_skip[l]·z_l + b) + b) + b)

A plan's `begin` makes the state of one stream; `run` generates the next samples of several streams at once, each as if it
were alone. So generation can pause, move and resume anywhere, and streams may join and leave between calls.

van den Oord et al. 2016; the persistent-state algorithm: Paine et al. 2016, "Fast Wavenet Generation Algorithm".
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc import _C
from fastvoc._cpus import check_threads
from fastvoc._op import PlanOp, Unsupported
from fastvoc._torch_threads import callers_torch_threads
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.ops.philox import draws, n_draws
from fastvoc.ops.wavenet_generate_cuda import CudaPlan

HEADS = ("softmax", "mol", "gaussian", "mog")
ACTIVATIONS = ("none", "relu", "tanh")
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass
class WaveNetWeights:
    """A WaveNet in canonical form (DESIGN: gate rows tanh first, scales folded). All tensors float32, contiguous; float64
    ones are for the reference alone.

    L layers, R residual, H = G/2, S skip, D hidden, A outputs, C mel bands, K samples that the input layer sees
    """

    front: (
        Tensor  # (K, n_classes or 1, R): what each of the last samples, newest first, adds to the first layer's input
    )
    b_front: Tensor  # (R,)
    w_in: Tensor  # (L, 2H, R, k), the last tap is the current sample
    b_in: Tensor  # (L, 2H)
    w_cond: Tensor  # (L, 2H, C); C = 0: unconditioned
    w_res: Tensor  # (L, R, H)
    b_res: Tensor  # (L, R)
    w_skip: Tensor  # (L, S, H)
    b_skip: Tensor  # (S,), of all layers together
    w_hidden: Tensor  # (D, S)
    b_hidden: Tensor  # (D,)
    w_logits: Tensor  # (A, D)
    b_logits: Tensor  # (A,)
    dilations: tuple[int, ...]
    head: str
    n_classes: int  # 0: sample values go in
    n_mix: int = 1
    rho: float = 1.0
    front_activation: str = "none"

    def double(self) -> "WaveNetWeights":
        doubled: Any = {f.name: v.double() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **doubled)

    @property
    def n_draws(self) -> int:
        return n_draws(self.head, self.n_mix)


class CpuPlan:
    """Packed weights for csrc/cpu/wavenet_generate.cpp. Immutable after construction; safe to share between threads."""

    backend = "cpu"

    def __init__(self, weights: WaveNetWeights, precision: str = "fp32", threads: int = 1):
        w = weights
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
        check_threads(threads)
        if w.front.dtype != torch.float32:
            raise Unsupported(f"the weights are {w.front.dtype}, not float32")
        if precision == "int8" and w.w_in.shape[0] * w.w_in.shape[1] // 2 > 1 << 15:
            raise Unsupported("int8 with more than 32768 gates in all layers: their sum of skips could leave int32")
        if w.n_mix > 256:
            raise Unsupported("more than 256 mixture components")
        self.weights, self.precision, self.threads = w, precision, threads
        L, G, R, k = w.w_in.shape
        self.n_layers, self.half_gate, self.n_mels, self.n_out = L, G // 2, w.w_cond.shape[2], w.w_logits.shape[0]
        sizes = dict(
            kernel=k,
            residual=R,
            half_gate=G // 2,
            skip=w.w_skip.shape[1],
            hidden=w.w_hidden.shape[0],
            out=self.n_out,
            n_mels=self.n_mels,
            n_classes=w.n_classes,
            head=HEADS.index(w.head),
            n_mix=w.n_mix,
            front_kernel=w.front.shape[0],
            front_activation=ACTIVATIONS.index(w.front_activation),
            rho=w.rho,
        )
        tensors = dict(
            front=w.front,
            b_front=w.b_front,
            b_in=w.b_in,
            cond=w.w_cond,
            res=w.w_res,
            b_res=w.b_res,
            skip=w.w_skip,
            b_skip=w.b_skip,
            hidden=w.w_hidden,
            b_hidden=w.b_hidden,
            logits=w.w_logits,
            b_logits=w.b_logits,
        )
        arrays = {name: t.detach().float().cpu().numpy() for name, t in tensors.items()}
        arrays["in"] = w.w_in.detach().float().cpu().numpy()
        self._plan = _C.WaveNetPlan(sizes, list(w.dilations), arrays, PRECISIONS.index(precision), threads)

    @property
    def state_bytes(self) -> int:
        return self._plan.state_bytes

    @property
    def packed_bytes(self) -> int:
        return self._plan.packed_bytes

    def begin(
        self, seed: int, stream: int, temperature: float, initial: float, speaker: Tensor | None = None
    ) -> Tensor:
        """A new stream's state: a uint8 tensor that `run` advances in place and that may be cloned, saved and moved.

        speaker: (L, 2H), added to the conditioning.   initial: the sample value or class before the first sample.
        """
        state = _aligned_bytes(self.state_bytes)
        address = 0
        if speaker is not None:
            speaker = speaker.detach().float().contiguous()
            address = speaker.data_ptr()
        self._plan.begin(state.data_ptr(), seed & (2**64 - 1), stream, temperature, initial, address)
        return state

    def run(
        self,
        states: list[Tensor],
        n_samples: list[int],
        cond: list[Tensor] | None = None,
        *,
        layer_cond: bool = False,
        noise: list[Tensor] | None = None,
        forced: list[Tensor] | None = None,
        parameters: bool = False,
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Generates n_samples[i] more samples of stream i.

        cond    per stream (n_samples, C) upsampled mel; with layer_cond (n_samples, L, 2H), added to the layers as it is
        noise   per stream (n_samples, n_draws), instead of Philox's;  forced: per stream (n_samples,), fed back instead
                of what was drawn
        -> per stream (n_samples,) sample values or class numbers, and with parameters=True (n_samples, A) network outputs
        """
        order = sorted(range(len(states)), key=lambda i: -n_samples[i])  # the kernel drops streams from the end
        n_streams = len(states)
        if not n_streams:
            return [], [] if parameters else None
        out = [torch.empty(n) for n in n_samples]
        given = [torch.empty(n, self.n_out) for n in n_samples] if parameters else None
        keep = []  # converted tensors must outlive the call

        def addresses(name, tensors, *width):
            if tensors is None:
                return []
            kept = [tensors[i].detach().to("cpu", torch.float32).contiguous() for i in order]
            for i, t in zip(order, kept):
                if len(t) < n_samples[i] or tuple(t.shape[1:]) != width:
                    raise ShapeError(f"{name}[{i}] is {tuple(t.shape)}, expected {(n_samples[i], *width)}")
            keep.append(kept)
            return [t.data_ptr() for t in kept]

        workspace = _aligned_bytes(self._plan.workspace_bytes(n_streams, self.threads))
        self._plan.run(
            [states[i].data_ptr() for i in order],
            [n_samples[i] for i in order],
            addresses("cond", cond, *((self.n_layers, 2 * self.half_gate) if layer_cond else (self.n_mels,))),
            layer_cond,
            self.n_mels,
            self.half_gate,
            addresses("noise", noise, self.weights.n_draws),
            addresses("forced", forced),
            [out[i].data_ptr() for i in order],
            [given[i].data_ptr() for i in order] if given else [],
            workspace.data_ptr(),
            self.threads,
        )
        return out, given


def _aligned_bytes(n: int) -> Tensor:
    """(n,) uint8 on a 64-byte boundary, as torch's CPU allocator gives."""
    return torch.empty(n, dtype=torch.uint8)


class ReferencePlan:
    """The same in plain torch: ring buffers, one step after the other. What the compiled engine is measured against.

    Streams of equal length run as one batch. Any float dtype of the weights; states are dictionaries of tensors.
    """

    backend = "reference"

    def __init__(self, weights: WaveNetWeights, precision: str = "fp32", threads: int = 1):
        if precision != "fp32":
            raise Unsupported("the reference computes in the dtype of its weights")
        if not weights.front.is_cpu:
            raise Unsupported("the reference runs on the CPU")
        self.weights = w = weights
        self.n_mels, self.n_out, self.half_gate = w.w_cond.shape[2], w.w_logits.shape[0], w.w_in.shape[1] // 2
        self.taps = [w.w_in[l].permute(0, 2, 1).flatten(1).contiguous() for l in range(len(w.dilations))]  # (2H, k·R)

    def begin(self, seed: int, stream: int, temperature: float, initial: float, speaker: Tensor | None = None) -> dict:
        w = self.weights
        k, R = w.w_in.shape[3], w.w_in.shape[2]
        return {
            "seed": seed,
            "stream": stream,
            "temperature": temperature,
            "n_done": 0,
            "history": torch.full((w.front.shape[0],), float(initial), dtype=w.front.dtype),
            "bias": w.b_in if speaker is None else w.b_in + speaker.to(w.b_in.dtype),
            "rings": [torch.zeros((k - 1) * d, R, dtype=w.front.dtype) for d in w.dilations],
        }

    @torch.inference_mode()
    @callers_torch_threads()
    def run(self, states, n_samples, cond=None, *, layer_cond=False, noise=None, forced=None, parameters=False):
        if len(set(n_samples)) > 1 or len({s["n_done"] for s in states}) > 1:  # one by one
            pick = lambda x, i: None if x is None else [x[i]]
            each = [
                self.run(
                    [s],
                    [n],
                    pick(cond, i),
                    layer_cond=layer_cond,
                    noise=pick(noise, i),
                    forced=pick(forced, i),
                    parameters=parameters,
                )
                for i, (s, n) in enumerate(zip(states, n_samples))
            ]
            return [o[0] for o, _ in each], [p[0] for _, p in each] if parameters else None
        w, n, B = self.weights, n_samples[0], len(states)
        dtype = w.front.dtype
        bias = torch.stack([s["bias"] for s in states])  # (B, L, 2H)
        rings = [torch.stack([s["rings"][l] for s in states], 1) for l in range(len(w.dilations))]  # ((k-1)d, B, R)
        history = torch.stack([s["history"] for s in states])
        temperature = torch.tensor([s["temperature"] for s in states], dtype=dtype)
        k = w.w_in.shape[3]
        if noise is None:
            noise = [torch.from_numpy(draws(w.head, w.n_mix, s["seed"], s["stream"], s["n_done"], n)) for s in states]
        noise = torch.stack([t.to(dtype) for t in noise])
        if cond is not None:
            cond = torch.stack([c.to(dtype) for c in cond])
        out, given = torch.empty(B, n, dtype=dtype), torch.empty(B, n, self.n_out, dtype=dtype)
        start = states[0]["n_done"]
        for t in range(n):
            if w.n_classes:
                x = w.b_front + sum(w.front[j][history[:, j].long()] for j in range(w.front.shape[0]))
            else:
                x = w.b_front + history @ w.front[:, 0]
            x = {"none": lambda v: v, "relu": F.relu, "tanh": torch.tanh}[w.front_activation](x)
            skip = w.b_skip
            for l, d in enumerate(w.dilations):
                size = (k - 1) * d
                past = [rings[l][(start + t + j * d) % size] for j in range(k - 1)]
                a = F.linear(torch.cat([*past, x], 1), self.taps[l], None) + bias[:, l]
                rings[l][(start + t) % size] = x
                if cond is not None:
                    a = a + (cond[:, t, l] if layer_cond else F.linear(cond[:, t], w.w_cond[l]))
                z = torch.tanh(a[:, : self.half_gate]) * torch.sigmoid(a[:, self.half_gate :])
                skip = skip + F.linear(z, w.w_skip[l])
                x = (x + F.linear(z, w.w_res[l], w.b_res[l])) * w.rho
            y = F.linear(F.relu(F.linear(F.relu(skip), w.w_hidden, w.b_hidden)), w.w_logits, w.b_logits)
            drawn = self._draw(y, noise[:, t], temperature)
            out[:, t], given[:, t] = drawn, y
            fed = drawn if forced is None else torch.stack([f[t] for f in forced]).to(dtype)
            history = torch.cat([fed[:, None], history[:, :-1]], 1)
        for b, state in enumerate(states):
            state["n_done"] += n
            state["history"] = history[b]
            state["rings"] = [ring[:, b].clone() for ring in rings]
        return list(out), list(given) if parameters else None

    def _draw(self, y: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        w = self.weights
        cold = temperature == 0
        if w.head == "softmax":
            scale = torch.where(cold, 1, temperature)
            cumulated = torch.softmax(y / scale[:, None], 1).cumsum(1)
            drawn = (cumulated <= noise).sum(1).clamp_max(self.n_out - 1)
            return torch.where(cold, y.argmax(1), drawn).to(y.dtype)
        n = w.n_mix
        means, log_scales = (y[:, :1], y[:, 1:]) if self.n_out == 2 else (y[:, n : 2 * n], y[:, 2 * n :])
        pick = torch.zeros(len(y), 1, dtype=torch.long)
        if w.n_draws > 1:
            gumbel = y[:, :n] - torch.log(-torch.log(noise[:, :n]))
            pick = torch.where(cold[:, None], y[:, :n], gumbel).argmax(1, keepdim=True)
        last = noise[:, -1]
        if w.head == "mol":
            last = torch.log(last) - torch.log(1 - last)
        return (means.gather(1, pick)[:, 0] + temperature * log_scales.gather(1, pick)[:, 0].exp() * last).clamp(-1, 1)


wavenet_generate = PlanOp("wavenet_generate", cuda=CudaPlan, cpu=CpuPlan, reference=ReferencePlan)
