"""Upsampling as a list of stages that can be run piece by piece, each sample from a fixed formula.

A stage turns frames into `scale` times as many: output s·f + p is a weighted sum of the input frames f + first … f + last,
its weights chosen by the phase p. Two kinds:

    Fir   weight (scale, n_taps, freq_taps): the same weights for every band (stretches, smoothing, ConvTranspose2d)
    Mix   weight (scale, n_taps, C_in, C_out): bands are mixed (Conv1d over frames, ConvTranspose1d)

Outside the signal there are zeros ("zero") or copies of the edge frame ("clamp"); a "valid" stage never looks outside and
gives n_taps - 1 frames fewer. A position's value does not depend on which other positions are computed with it: that is
what makes generation in chunks equal to generation in one piece, bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvoc import _C
from fastvoc._op import launch


def _polyphase(n_phases: int, taps: dict[tuple[int, int], Tensor]) -> tuple[Tensor, int]:
    """{(phase, frame offset): weight} -> (n_phases, n_taps, …), first offset."""
    offsets = [offset for _, offset in taps]
    first, last = min(offsets), max(offsets)
    example = next(iter(taps.values()))
    weight = torch.zeros(n_phases, last - first + 1, *example.shape, dtype=torch.float64)
    for (phase, offset), w in taps.items():
        weight[phase, offset - first] += w.double()
    return weight.float(), first


@dataclass
class Fir:
    """out[c, s·f + p] = act(bias + Σ_i Σ_j weight[p, i, j] · in[c + j - (freq_taps - 1)/2, f + first + i])"""

    weight: Tensor  # (scale, n_taps, freq_taps)
    first: int
    bias: float = 0.0
    slope: float = 1.0  # of the activation for negative values: 1 none, 0 ReLU
    edge: str = "zero"

    @property
    def scale(self) -> int:
        return self.weight.shape[0]

    @staticmethod
    def stretch_conv(scale: int, weight: Tensor, mode: str, slope: float) -> "list[Fir]":
        """A stretch, then a Conv2d of weight (freq_taps, 2·scale + 1) with zero padding."""
        half = weight.shape[1] // 2
        if mode == "bilinear":  # its edges are clamped, the convolution's are zero: two stages
            taps = {}
            for p in range(scale):
                position = (p + 0.5) / scale - 0.5  # align_corners=False
                left = -1 if position < 0 else 0
                for offset, w in ((left, 1 - (position - left)), (left + 1, position - left)):
                    taps[p, offset] = torch.tensor([w])
            stretch, first = _polyphase(scale, taps)
            return [Fir(stretch, first, edge="clamp"), Fir(weight.T[None].contiguous(), -half, slope=slope)]
        taps = {}
        for p in range(scale):
            for j in range(weight.shape[1]):
                key = p, (p + j - half) // scale
                taps[key] = taps.get(key, 0) + weight[:, j].double()
        polyphase, first = _polyphase(scale, taps)
        return [Fir(polyphase, first, slope=slope)]

    @staticmethod
    def transposed(weight: Tensor, bias: Tensor, stride: int, padding: int, slope: float) -> "Fir":
        """ConvTranspose2d of weight (freq_taps, k), its output cut to stride · frames."""
        if weight.shape[1] - 2 * padding < stride:
            raise ValueError("a transposed convolution must give `stride` samples a frame")
        taps = {}
        for p in range(stride):
            for j in range(weight.shape[1]):  # out[stride·i + j - padding] += w[j]·in[i]; frequency is flipped likewise
                if (p + padding - j) % stride == 0:
                    taps[p, (p + padding - j) // stride] = weight[:, j].flip(0)
        polyphase, first = _polyphase(stride, taps)
        return Fir(polyphase, first, bias=float(bias), slope=slope)

    def run(self, x: Tensor) -> Tensor:
        """x (B, C, F) -> (B, C, scale·F), all at once; the reference."""
        n_taps, freq_taps = self.weight.shape[1:]
        frames = _frames(x, self.first, n_taps, self.edge)  # (n_taps, B, C, F)
        half = (freq_taps - 1) // 2
        padded = torch.nn.functional.pad(frames, (0, 0, half, freq_taps - 1 - half))
        C = x.shape[1]
        y: Any = (
            sum(
                self.weight[:, i, j].to(x)[:, None, None, None] * padded[i, :, j : j + C]
                for i in range(n_taps)
                for j in range(freq_taps)
            )
            + self.bias
        )  # (scale, B, C, F)
        y = torch.where(y < 0, y * self.slope, y)
        return y.permute(1, 2, 3, 0).flatten(2)


@dataclass
class Mix:
    """out[o, s·f + p] = bias[o] + Σ_i Σ_c weight[p, i, c, o] · in[c, f + first + i]"""

    weight: Tensor  # (scale, n_taps, C_in, C_out)
    first: int
    bias: Tensor  # (C_out,)
    edge: str = "zero"

    @property
    def scale(self) -> int:
        return self.weight.shape[0]

    @staticmethod
    def conv(weight: Tensor) -> "Mix":
        """A Conv1d of weight (C_out, C_in, k) without padding or bias."""
        return Mix(weight.permute(2, 1, 0)[None].float().contiguous(), 0, torch.zeros(weight.shape[0]), edge="valid")

    @staticmethod
    def transposed(weight: Tensor, bias: Tensor, stride: int) -> "Mix":
        """A ConvTranspose1d of weight (C_in, C_out, k), k a multiple of the stride, its last k - stride samples cut."""
        n_taps = weight.shape[2] // stride
        phases = weight.reshape(*weight.shape[:2], n_taps, stride)  # k = i·stride + p reaches back i frames
        return Mix(phases.permute(3, 2, 0, 1).flip(1).float().contiguous(), 1 - n_taps, bias.float())

    def run(self, x: Tensor) -> Tensor:
        n_taps = self.weight.shape[1]
        frames = _frames(x, self.first, n_taps, self.edge)
        y = torch.einsum("pico,ibcf->bofp", self.weight.to(x), frames) + self.bias.to(x)[:, None, None]
        return y.flatten(2)


def _frames(x: Tensor, first: int, n_taps: int, edge: str) -> Tensor:
    """(B, C, F) -> (n_taps, B, C, F'): the shifted copies of x that a stage's taps see."""
    if edge == "valid":
        return x.unfold(2, n_taps, 1).permute(3, 0, 1, 2)
    at = torch.arange(x.shape[2])[None] + first + torch.arange(n_taps)[:, None]
    taken = x[:, :, at.clamp(0, x.shape[2] - 1)].permute(2, 0, 1, 3)
    inside = (at >= 0) & (at < x.shape[2])
    return taken if edge == "clamp" else taken * inside[:, None, None].to(x)


def upsample_reference(stages: list, mel: Tensor) -> Tensor:
    """mel (B, C, F) -> (B, C, n_samples): what the compiled upsampler computes."""
    for stage in stages:
        mel = stage.run(mel)
    return mel


def upsample_samples(stages: list, mel: Tensor, indent: int = 0) -> Tensor:
    """mel (B, C, F) float32 on the CPU -> (B, n_samples, C'), time-major, by the compiled stages. No gradient.

    indent: samples at the start and at the end that are left out.
    """
    samples = []
    for item in mel:
        upsampler = StreamingUpsampler(stages, mel.shape[1], indent)
        upsampler.push(item, last=True)
        samples.append(upsampler.take(upsampler.n_ready()))
    return torch.stack(samples)


EDGES = ("zero", "clamp", "valid")


class _Frames:
    """What the upsamplers keep of an utterance."""

    def mark(self) -> tuple:
        """All of it; `rewind` goes back there. Tensors are replaced, never changed."""
        return self.mel, self.first_frame, self.n_done, self.finished

    def rewind(self, mark: tuple) -> None:
        self.mel, self.first_frame, self.n_done, self.finished = mark


class WholeUpsampler(_Frames):
    """StreamingUpsampler's stand-in for a network that has no stages: the samples are there when the last frame is."""

    def __init__(self, network: torch.nn.Module, n_mels: int):
        self.network = network
        self.mel = torch.empty(0, n_mels)  # (frames, n_mels), and once all are there (samples, n_mels)
        self.first_frame = 0  # here always 0
        self.n_done = 0
        self.finished = False

    def push(self, mel: Tensor | None, last: bool = False) -> None:
        """mel (n_mels, n_frames), or None. last: no more will come."""
        if mel is not None:
            self.mel = torch.cat([self.mel, mel.t()])  # float32, or a float64 model's float64
        if last and not self.finished:
            with torch.no_grad():
                dtype = next(self.network.parameters()).dtype
                self.mel = self.network(self.mel.t()[None].to(dtype).contiguous())[0].t().contiguous()
            self.finished = True

    def n_ready(self) -> int:
        """Samples that can be given now, beyond those given already."""
        return len(self.mel) - self.n_done if self.finished else 0

    def take(self, n: int) -> Tensor:
        """The next n samples' conditioning, (n, n_mels)."""
        self.n_done += n
        return self.mel[self.n_done - n : self.n_done]


class StreamingUpsampler(_Frames):
    """The stages on a mel that arrives in pieces: gives each sample's conditioning as soon as it can be known.

    Keeps the few frames that later samples still need; its memory does not grow with the utterance.
    indent: samples at the start and at the end that are left out.
    """

    def __init__(self, stages: list, n_mels: int, indent: int = 0):
        self.stages = stages
        self.indent = indent
        self.n_mels = n_mels
        self.mel = torch.empty(0, n_mels)  # (frames kept, n_mels), channels last
        self.first_frame = 0  # number of the first of them
        self.n_done = indent  # samples given or left out
        self.finished = False

    def push(self, mel: Tensor | None, last: bool = False) -> None:
        """mel (n_mels, n_frames) float32, or None. last: no more will come."""
        if mel is not None:
            self.mel = torch.cat([self.mel, mel.t()])  # float32, or a float64 model's float64
        self.finished = self.finished or last

    @property
    def n_frames(self) -> int:
        return self.first_frame + len(self.mel)

    def n_ready(self) -> int:
        """Samples that can be given now, beyond those given already."""
        return max(self._ready(len(self.stages)) - self.indent - self.n_done, 0)

    def take(self, n: int) -> Tensor:
        """The next n samples' conditioning, (n, n_mels)."""
        out = self._compute(len(self.stages), self.n_done, self.n_done + n)
        self.n_done += n
        first = max(self._reach(len(self.stages), self.n_done)[0], self.first_frame)
        keep_from = min(
            first - self.first_frame, max(len(self.mel) - 1, 0)
        )  # the last frame is what a clamped edge copies
        self.mel, self.first_frame = (
            self.mel[keep_from:],
            self.first_frame + keep_from,
        )  # a view: the next push copies it
        return out

    def _ready(self, depth: int) -> int:
        """Positions known of the signal after `depth` stages."""
        if depth == 0:
            return self.n_frames
        stage, known = self.stages[depth - 1], self._ready(depth - 1)
        n_taps = stage.weight.shape[1]
        if stage.edge == "valid":
            return max(known - (n_taps - 1), 0) * stage.scale
        look_ahead = 0 if self.finished else max(stage.first + n_taps - 1, 0)
        return max(known - look_ahead, 0) * stage.scale

    def _reach(self, depth: int, position: int) -> tuple[int, int]:
        """First and last mel frame that the samples from `position` on, or at it, depend on."""
        low = high = position
        for stage in reversed(self.stages[:depth]):
            low = low // stage.scale + stage.first
            high = high // stage.scale + stage.first + stage.weight.shape[1] - 1
        return low, high

    def _compute(self, depth: int, start: int, end: int) -> Tensor:
        """Positions start … end - 1 of the signal after `depth` stages, (end - start, C)."""
        if depth == 0:
            return self.mel[start - self.first_frame : end - self.first_frame]
        stage = self.stages[depth - 1]
        known = self._ready(depth - 1)  # where the stream has not ended, nothing asked for lies near its edge
        low = start // stage.scale + stage.first
        high = (end - 1) // stage.scale + stage.first + stage.weight.shape[1]
        low, high = min(max(low, 0), known - 1), max(min(high, known), 1)
        frames = self._compute(depth - 1, low, high).contiguous()
        C = frames.shape[1]
        n_taps = stage.weight.shape[1]
        if isinstance(stage, Fir):
            out = torch.empty(end - start, C)
            launch(
                _C.upsample_fir_cpu,
                frames,
                stage.weight,
                out,
                known,
                low,
                start,
                end - start,
                C,
                stage.scale,
                n_taps,
                stage.weight.shape[2],
                stage.first,
                stage.bias,
                stage.slope,
                EDGES.index(stage.edge),
            )
        else:
            out = torch.empty(end - start, stage.weight.shape[3])
            launch(
                _C.upsample_mix_cpu,
                frames,
                stage.weight,
                stage.bias,
                out,
                known,
                low,
                start,
                end - start,
                C,
                out.shape[1],
                stage.scale,
                n_taps,
                stage.first,
                EDGES.index(stage.edge),
            )
        return out
