"""What else generates from the same WaveNet weights: the fastest loops we could write in PyTorch, and r9y9's package.

All generate in fp32, with the random numbers and the conditioning made before the first sample. A peer that cannot run
says why with PeerUnavailable.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc.ops.wavenet_generate import WaveNetWeights


class PeerUnavailable(RuntimeError):
    """Why a peer cannot run here."""


class Packed(NamedTuple):
    """Weights transposed for x @ W; lists where a layer waits for the one before. Ring l has sizes[l] rows."""

    front: list[Tensor]  # K of (n_classes or 1, R)
    b_front: Tensor  # (R,)
    past: Tensor  # (L, (k-1)·R, 2H)
    now: list[Tensor]  # L of (R, 2H)
    res: list[Tensor]  # L of (H, R)
    b_res: list[Tensor]  # L of (R,)
    skip: Tensor  # (L·H, S)
    b_skip: Tensor
    hidden: Tensor  # (S, D)
    b_hidden: Tensor
    logits: Tensor  # (D, A)
    b_logits: Tensor
    offsets: Tensor  # (L, 1), of each layer's ring in the one array of rings
    sizes: Tensor  # (L, 1)
    taps: Tensor  # (L, k-1): how many rows behind the oldest


def packed(w: WaveNetWeights) -> Packed:
    L, G, R, k = w.w_in.shape
    d = torch.tensor(w.dilations)[:, None]
    sizes = (k - 1) * d
    transposed = lambda t: [m.t().contiguous() for m in t]
    return Packed(
        list(w.front), w.b_front, w.w_in[..., : k - 1].permute(0, 3, 2, 1).reshape(L, (k - 1) * R, G).contiguous(),
        transposed(w.w_in[..., k - 1]), transposed(w.w_res), list(w.b_res),
        w.w_skip.permute(0, 2, 1).flatten(0, 1).contiguous(), w.b_skip,
        w.w_hidden.t().contiguous(), w.b_hidden, w.w_logits.t().contiguous(), w.b_logits,
        sizes.cumsum(0) - sizes, sizes, torch.arange(k - 1) * d,
    )


def step(
    w: Packed, rho: float, n_mix: int, t: Tensor, rings: Tensor, history: Tensor, cond: Tensor, noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """One sample of B streams; advances rings in place. n_mix: 0 for a softmax over classes, else of logistics.

    t () int64   rings (Σ sizes, B, R)   history (B, K)   cond (L, B, 2H), biases included   noise (B, draws)
    -> drawn (B,), outputs (B, A)
    """
    B = history.size(0)
    # What the rings hold is known before the first layer: one gather and one batched product for all past taps
    past = rings[(w.offsets + (t + w.taps) % w.sizes).flatten()]
    past = past.view(w.past.size(0), -1, B, past.size(2)).transpose(1, 2).flatten(2)
    sums = torch.baddbmm(cond, past, w.past)
    x = w.b_front.expand(B, -1)
    for j in range(len(w.front)):
        if n_mix == 0:
            x = x + w.front[j][history[:, j].long()]
        else:
            x = x + history[:, j : j + 1] * w.front[j]
    inputs: list[Tensor] = []
    gated: list[Tensor] = []
    for l in range(len(w.now)):
        inputs.append(x)
        a, b = torch.addmm(sums[l], x, w.now[l]).chunk(2, 1)
        z = torch.tanh(a) * torch.sigmoid(b)
        gated.append(z)
        x = (x + torch.addmm(w.b_res[l], z, w.res[l])) * rho
    rings[(w.offsets + t % w.sizes).flatten()] = torch.stack(inputs)
    skip = torch.addmm(w.b_skip, torch.cat(gated, 1), w.skip)
    y = torch.addmm(w.b_logits, F.relu(torch.addmm(w.b_hidden, F.relu(skip), w.hidden)), w.logits)
    if n_mix == 0:
        drawn = (torch.softmax(y, 1).cumsum(1) <= noise).sum(1).clamp(max=y.size(1) - 1).to(y.dtype)
    else:
        pick = (y[:, :n_mix] - torch.log(-torch.log(noise[:, :n_mix]))).argmax(1, keepdim=True)
        mean, log_scale = y[:, n_mix : 2 * n_mix].gather(1, pick)[:, 0], y[:, 2 * n_mix :].gather(1, pick)[:, 0]
        drawn = (mean + log_scale.exp() * (torch.log(noise[:, -1]) - torch.log(1 - noise[:, -1]))).clamp(-1, 1)
    return drawn, y


def loop(
    w: Packed, rho: float, n_mix: int, rings: Tensor, history: Tensor, cond: Tensor, noise: Tensor,
    forced: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """cond (n, L, B, 2H), noise (n, B, draws), forced (n, B) or None -> drawn (n, B), outputs (n, B, A)"""
    out = torch.empty(noise.size(0), noise.size(1))
    outputs = torch.empty(noise.size(0), noise.size(1), w.b_logits.size(0))
    for t in range(noise.size(0)):
        drawn, y = step(w, rho, n_mix, torch.tensor(t), rings, history, cond[t], noise[t])
        out[t], outputs[t] = drawn, y
        fed = drawn if forced is None else forced[t]
        history = torch.cat([fed[:, None], history[:, :-1]], 1)
    return out, outputs


class TorchLoop:
    """`loop` over some streams. how: "eager", "compile" (the step) or "script" (all of it)."""

    def __init__(self, weights: WaveNetWeights, how: str):
        w = self.weights = weights
        if w.head not in ("softmax", "mol") or w.front_activation != "none":
            raise PeerUnavailable(f"no {w.head} with front activation {w.front_activation}")
        self.packed, self.n_mix, self.loop = packed(w), 0 if w.head == "softmax" else w.n_mix, loop
        if how == "script":
            self.loop = torch.jit.script(loop)
        elif how == "compile":
            compiled = torch.compile(step, fullgraph=True, dynamic=False)
            self.loop = lambda *args: _with(compiled, *args)

    @torch.inference_mode()
    def __call__(self, n: int, cond: list[Tensor], forced: list[Tensor] | None = None) -> Tensor:
        """cond: per stream (≥ n, C) -> (B, n, A) outputs"""
        w, B = self.weights, len(cond)
        L, G, R, _ = w.w_in.shape
        projected = torch.addmm(w.b_in.flatten(), torch.cat([c[:n] for c in cond]), w.w_cond.flatten(0, 1).t())
        projected = projected.view(B, n, L, G).permute(1, 2, 0, 3).contiguous()
        rings = torch.zeros(int(self.packed.sizes.sum()), B, R)
        history = torch.full((B, len(self.packed.front)), initial_of(w))
        noise = torch.rand(n, B, w.n_draws).clamp(1e-5, 1 - 1e-5)
        fed = None if forced is None else torch.stack([f[:n] for f in forced], 1)
        return self.loop(self.packed, w.rho, self.n_mix, rings, history, projected, noise, fed)[1].transpose(0, 1)


def _with(compiled_step: Callable, w, rho, n_mix, rings, history, cond, noise, forced):
    n, B, _ = noise.shape
    out, outputs = torch.empty(n, B), torch.empty(n, B, len(w.b_logits))
    counter = torch.arange(n)
    for t in range(n):
        out[t], outputs[t] = compiled_step(w, rho, n_mix, counter[t], rings, history, cond[t].clone(), noise[t].clone())
        fed = out[t] if forced is None else forced[t]
        history = torch.cat([fed[:, None], history[:, :-1]], 1)
    return out, outputs


def initial_of(w: WaveNetWeights) -> float:
    """What stands before the first sample: silence."""
    return float(w.n_classes // 2)


class R9y9Package:
    """`pip install --no-deps wavenet_vocoder` (0.1.1), with our weights; of its sizes only: MoL, ρ = √½, D = S."""

    def __init__(self, weights: WaveNetWeights):
        w = self.weights = weights
        L, G, R, k = w.w_in.shape
        S, A = w.w_skip.shape[1], w.w_logits.shape[0]
        if w.head != "mol" or abs(w.rho - 0.5**0.5) > 1e-6 or w.w_hidden.shape[0] != S or len(w.front) != 1:
            raise PeerUnavailable("has ρ = √½, as many hidden as skip channels, and draws batches from mol only")
        try:
            package = importlib.import_module("wavenet_vocoder")
        except Exception as reason:  # not installed, or broken by a newer torch
            raise PeerUnavailable(f"{type(reason).__name__}: {reason}") from None
        stacks = w.dilations.count(1)
        self.net = net = package.WaveNet(
            out_channels=A, layers=L, stacks=stacks, residual_channels=R, gate_channels=G, skip_out_channels=S,
            kernel_size=k, dropout=0.0, cin_channels=w.w_cond.shape[2], weight_normalization=False, scalar_input=True,
            use_speaker_embedding=False, legacy=False,
        ).eval()
        torch.nn.utils.remove_weight_norm(net.first_conv)  # which has it whatever one asks for
        found = [layer.conv.dilation[0] for layer in net.conv_layers]
        if found != list(w.dilations):
            raise PeerUnavailable(f"the package would dilate by {found}")
        column = lambda t: t[..., None]
        state = {"first_conv.weight": column(w.front[0].t()), "first_conv.bias": w.b_front}
        for l in range(L):
            at = f"conv_layers.{l}."
            state |= {
                at + "conv.weight": w.w_in[l], at + "conv.bias": w.b_in[l], at + "conv1x1c.weight": column(w.w_cond[l]),
                at + "conv1x1c.bias": torch.zeros(G), at + "conv1x1_out.weight": column(w.w_res[l]),
                at + "conv1x1_out.bias": w.b_res[l], at + "conv1x1_skip.weight": column(w.w_skip[l]),
                at + "conv1x1_skip.bias": w.b_skip / L,
            }
        state |= {"last_conv_layers.1.weight": column(w.w_hidden), "last_conv_layers.1.bias": w.b_hidden}
        state |= {"last_conv_layers.3.weight": column(w.w_logits), "last_conv_layers.3.bias": w.b_logits}
        net.load_state_dict(state)

    @torch.inference_mode()
    def __call__(self, n: int, cond: list[Tensor], forced: list[Tensor] | None = None) -> Tensor | None:
        """(B, n, A) outputs under forcing; otherwise the package gives samples, not outputs, and this nothing."""
        B = len(cond)
        fed = torch.zeros(B, 1, 1)  # one given sample: the package takes the batch's size from it
        if forced is not None:
            fed = torch.cat([fed, torch.stack([f[: n - 1] for f in forced])[:, None]], 2)
        last, outputs = self.net.last_conv_layers[3], []
        if forced is not None:
            original = last.incremental_forward
            last.incremental_forward = lambda x: outputs.append(original(x)) or outputs[-1]
        try:
            self.net.incremental_forward(c=torch.stack([c[:n].t() for c in cond]), T=n, test_inputs=fed)
        finally:
            last.__dict__.pop("incremental_forward", None)
        return torch.cat(outputs, 1) if outputs else None
