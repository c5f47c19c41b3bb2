"""WaveNet generation on the GPU: the plan for csrc/cuda/wavenet_generate.cu. The contract is in ops/wavenet_generate.py.

Weights are packed once, in the order in which a team of blocks reads them (csrc/cuda/wavenet.cuh has the rules). The team
is chosen when the plan is built and never depends on a call, so that a stream's samples do not depend on its company.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc import _cuda
from fastvoc._op import Unsupported
from fastvoc.errors import ConfigError, ShapeError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEADER = np.dtype([("n_done", "<i8"), ("seed", "<u8"), ("stream", "<u4"), ("temperature", "<f4")])  # WaveNetStream


def _tiles(n: int, size: int = 16) -> int:
    return -(-n // size)


def _padded(w: Tensor, *shape: int) -> Tensor:
    """Zeros behind the last elements of each axis."""
    return F.pad(w, [p for have, want in reversed(list(zip(w.shape, shape))) for p in (0, want - have)])


def _in_tiles(w: Tensor) -> Tensor:
    """(n, k), multiples of 16 -> (n/16, k/16, 256): each tile in the order of mma.cuh's operand A, lane after lane."""
    n, k = w.shape
    # row = 8·i + g, column = 8·j + 2·q + e; lane = 4·g + q holds (j, i, e)
    return w.view(n // 16, 2, 8, k // 16, 2, 4, 2).permute(0, 3, 2, 5, 4, 1, 6).reshape(n // 16, k // 16, 256)


def _gate_rows(w: Tensor) -> Tensor:
    """(2H, …), tanh first -> (gate tiles · 16, …): 8 rows of tanh, their 8 of sigmoid, and so on."""
    H = w.shape[0] // 2
    n = _tiles(H, 8) * 8
    halves = torch.stack([_padded(half, n, *half.shape[1:]) for half in (w[:H], w[H:])])  # (2, n, …)
    return halves.unflatten(1, (n // 8, 8)).transpose(0, 1).flatten(0, 2)


class CudaPlan:
    """Packed weights on one GPU. Immutable after construction."""

    backend = "cuda"

    def __init__(self, weights, precision: str = "fp32", threads: int = 1):
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
        self.library = _cuda.library()
        w = self.weights = weights
        if w.front.dtype != torch.float32:
            raise Unsupported("float32 weights only; they are rounded to the precision here")
        self.precision, self.threads, self.device = precision, threads, w.front.device
        self.dtype = PRECISIONS[precision]
        L, G, R, k = w.w_in.shape
        self.half_gate, self.n_mels, self.n_out = G // 2, w.w_cond.shape[2], w.w_logits.shape[0]
        self.tuning = _cuda.tuning("wavenet_generate", self.device)
        from fastvoc.ops.wavenet_generate import ACTIVATIONS, HEADS

        self.sizes = torch.tensor(
            [
                L, k, R, G // 2, w.w_skip.shape[1], w.w_hidden.shape[0], self.n_out, w.n_classes, HEADS.index(w.head),
                w.n_mix, w.front.shape[0], ACTIVATIONS.index(w.front_activation), _cuda.DTYPE_CODE[self.dtype], 1,
                self.tuning["team_threads"],
            ]
        )  # fmt: skip
        with _cuda.device_of(w.front):
            self.team = self._number("wavenet_team", torch.tensor(self.tuning["teams"]), len(self.tuning["teams"]))
        self.sizes[13] = self.team
        if self.team == 1:
            self.sizes[14] = self.tuning["block_threads_fp32" if precision == "fp32" else "block_threads"]
        self._pack()

    def _number(self, name: str, *args) -> int:
        """A size that the library computes from ours."""
        found = self.library.number(name, self.sizes.data_ptr(), *[a.data_ptr() if isinstance(a, Tensor) else a for a in args])
        if found < 0:
            raise ConfigError(f"wavenet_generate: {self.library.error()}")
        return found

    # ---- packing ----

    def _pack(self) -> None:
        w, N = self.weights, self.team
        L, G, R, k = w.w_in.shape
        Rp, Hp = _tiles(R) * 16, _tiles(G // 2) * 16
        Sp, Dp, Ap = (_tiles(m.shape[0]) * 16 for m in (w.w_skip[0], w.w_hidden, w.w_logits))
        element = self.dtype.itemsize
        slab = torch.zeros(N, self._number("wavenet_slab") // element, dtype=self.dtype, device=self.device)
        layer0, layer1, skip, hidden, out, stride = (self._number("wavenet_offset", i) // element for i in range(6))

        def place(rows: Tensor, at: int, first: int = 0) -> int:
            """Tile j of these rows goes to member (first + j) mod N. -> values that it takes of every member"""
            tiles = _in_tiles(rows.to(self.dtype))
            per_tile = tiles[0].numel()
            for j, tile in enumerate(tiles):
                to = at + j // N * per_tile
                slab[(first + j) % N, to : to + per_tile] = tile.flatten()
            return _tiles(len(tiles), N) * per_tile

        wide = lambda x, *shape: _padded(x.detach().double(), *shape)
        biases = w.b_in.detach().double().clone()
        for l in range(L):
            taps = wide(w.w_in[l], G, Rp, k)  # (G, Rp, k)
            columns = [taps[:, :, j] for j in range(k - 1)]
            current = taps[:, :, k - 1]
            if l:
                res = wide(w.w_res[l - 1], Rp, Hp)
                columns += [current * w.rho, current @ res * w.rho]
                biases[l] += w.rho * (current[:, :R] @ w.b_res[l - 1].double())
            else:
                columns.append(current)
            at = layer1 + (l - 1) * stride if l else layer0
            at += place(_gate_rows(torch.cat(columns, 1)), at)
            if l:
                place(res, at, first=_tiles(G // 2, 8) % N)
        skips = torch.cat([wide(m, Sp, Hp) for m in w.w_skip], 1)  # (S, L·H)
        place(skips, skip)
        place(wide(w.w_hidden, Dp, Sp), hidden)
        place(wide(w.w_logits, Ap, Dp), out)
        self._slab = slab
        single = lambda x, *shape: wide(x, *shape).float().contiguous()
        self._front = single(w.front, *w.front.shape[:2], Rp)
        self._b_front, self._b_res = single(w.b_front, Rp), single(w.b_res, L, Rp)
        self._b_skip, self._b_hidden, self._b_out = single(w.b_skip, Sp), single(w.b_hidden, Dp), single(w.b_logits, Ap)
        self._w_cond = torch.cat([_gate_rows(m.detach().float()) for m in w.w_cond]).to(self.device).contiguous()  # (rows, C)
        self._biases = torch.cat([_gate_rows(b) for b in biases]).float()  # (rows,)
        self._dilations = torch.tensor(w.dilations, dtype=torch.int32, device=self.device)
        # A state: header, the last samples, biases, rings
        aligned = lambda n: -(-n // 64) * 64
        self._history = aligned(HEADER.itemsize)
        self._bias = self._history + aligned(4 * w.front.shape[0])
        at, rings = self._bias + aligned(4 * len(self._biases)), []
        for d in w.dilations:
            rings.append(at)
            at += aligned((k - 1) * d * Rp * element)
        self._rings = torch.tensor(rings, device=self.device)
        self.state_bytes = at

    @property
    def packed_bytes(self) -> int:
        return self._slab.nbytes

    # ---- running ----

    def begin(self, seed: int, stream: int, temperature: float, initial: float, speaker: Tensor | None = None) -> Tensor:
        """A new stream's state: a uint8 tensor on the GPU that `run` advances in place; it may be cloned, saved and moved."""
        header = np.array([(0, seed & (2**64 - 1), stream, temperature)], HEADER).view(np.uint8)
        state = torch.zeros(self.state_bytes, dtype=torch.uint8, device=self.device)
        state[: header.size] = torch.from_numpy(header)
        F_ = self.weights.front.shape[0]
        state[self._history : self._history + 4 * F_] = torch.full((F_,), float(initial), device=self.device).view(torch.uint8)
        biases = self._biases
        if speaker is not None:
            speaker = speaker.detach().to(self.device, torch.float32)
            biases = biases + torch.cat([_gate_rows(layer) for layer in speaker])
        state[self._bias : self._bias + 4 * len(biases)] = biases.view(torch.uint8)
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
        """Generates n_samples[i] more samples of stream i, asynchronously on the current stream. As CpuPlan.run."""
        order = sorted(range(len(states)), key=lambda i: -n_samples[i])  # streams of like lengths share a team
        out = [torch.empty(n, device=self.device) for n in n_samples]
        given = [torch.empty(n, self.n_out, device=self.device) for n in n_samples] if parameters else None
        longest = max(n_samples, default=0)
        if not longest:
            return out, given
        for state in states:
            if state.numel() != self.state_bytes or state.device != self.device:
                raise ShapeError(
                    f"a state has {state.numel()} bytes on {state.device}, this plan's have {self.state_bytes} on {self.device}",
                    hint="States belong to one model, precision and device.",
                )
        keep = []  # converted tensors must outlive the launches; torch's allocator then keeps their memory in order

        def table(tensors):
            if tensors is None:
                return None
            kept = [tensors[i].detach().to(self.device, torch.float32).contiguous() for i in order]
            keep.append(kept)
            return _addresses(kept, self.device)

        B, element = len(states), 4
        at = _addresses([states[i] for i in order], self.device)
        counts = torch.tensor([n_samples[i] for i in order], dtype=torch.int32).to(self.device)
        mel = table(cond)
        noises, forceds = table(noise), table(forced)
        outs = _addresses([out[i] for i in order], self.device)
        outputs = None if given is None else _addresses([given[i] for i in order], self.device)
        rows = len(self._biases)
        chunk = max(1, min(longest, self.tuning["cond_mib"] * 2**20 // (B * rows * element)))
        projected = torch.empty(chunk, B, rows, device=self.device)
        teams = max(1, self.tuning["teams_at_once"])
        columns = 1 << min(3, max(0, math.ceil(math.log2(_tiles(B, teams)))))
        with _cuda.device_of(self._slab):
            boards = torch.empty(self._number("wavenet_boards", B, columns), dtype=torch.uint8, device=self.device)
        for start in range(0, longest, chunk):
            count = min(chunk, longest - start)
            self.library.call(
                "wavenet_condition", self._w_cond, mel, at, self._bias, counts, projected, rows,
                0 if mel is None or layer_cond else self.n_mels, self.half_gate, _tiles(self.half_gate, 8),
                int(layer_cond and mel is not None), B, start, count,
            )  # fmt: skip
            self.library.call(
                "wavenet_generate", self.sizes.data_ptr(), float(self.weights.rho), self._slab, self._front, self._b_front,
                self._b_res, self._b_skip, self._b_hidden, self._b_out, self._dilations, self._rings, self._history, at,
                counts, projected, noises, forceds, outs, outputs, boards, B, start, count, columns,
            )  # fmt: skip
        return out, given


def _addresses(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64).to(device)
