"""Muon: the optimiser that steps by orthogonalised momentum. Half the steps of Adam on the small WaveNet (benchmarks/NOTES.md).

A gradient's few large singular directions drown the many small ones; a step whose singular values are all equal moves them
alike. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the step's size after Liu et al. 2025,
"Muon is scalable for LLM training", section 2.2: so that its root mean square is Adam's, and the same learning rates serve.
"""

from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that takes singular values of 0.002 … 1 to 0.68 … 1.21 in five steps
SMALLEST = 8  # a weight with fewer rows or columns is no matrix to speak of


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> the same singular vectors with all singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of a network, Adam for everything else.

    named_parameters  of the network. A convolution's weight (out, in, kernel) is the matrix (out, in · kernel); vectors,
                      scalars and matrices of fewer than 8 rows or columns are Adam's
    lr                learning rate of both
    momentum          of Muon, with Nesterov's look ahead
    betas, eps        of Adam
    adam              names of further parameters for Adam, * for any letters: the paper leaves it input and output layers
    adam_scale        Adam's rate as a part of lr: what is right for matrices may wipe out a short filter in twenty steps

    torch.optim.Muon, of torch 2.9 and later, takes matrices alone, and no convolution's weight.
    """

    def __init__(self, named_parameters, lr=2e-3, momentum=0.95, betas=(0.9, 0.999), eps=1e-8, adam=(), adam_scale=1.0):
        groups: dict[str, list[Tensor]] = {"muon": [], "adam": []}
        for name, parameter in named_parameters:
            matrix = parameter.dim() >= 2 and min(parameter.flatten(1).shape) >= SMALLEST
            named = any(fnmatchcase(name, pattern) for pattern in adam)
            groups["muon" if matrix and not named else "adam"].append(parameter)
        super().__init__(
            [{"params": parameters, "kind": kind} for kind, parameters in groups.items() if parameters],
            {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "adam_scale": adam_scale},
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._step_muon if group["kind"] == "muon" else self._step_adam)(parameters, group)

    def _step_muon(self, parameters: list[Tensor], group: dict) -> None:
        directions: dict[torch.Size, list] = {}  # by shape: matrices of one shape are orthogonalised together
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            direction = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
            directions.setdefault(direction.shape, []).append((p, direction))
        for shape, pairs in directions.items():
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for (p, _), update in zip(pairs, orthogonalised(torch.stack([d for _, d in pairs]))):
                p.add_(update.reshape(p.shape), alpha=-size)

    def _step_adam(self, parameters: list[Tensor], group: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p), "step": torch.zeros(())}
        means, squares, steps = ([self.state[p][name] for p in parameters] for name in ("mean", "square", "step"))
        torch_adam(
            parameters, [p.grad for p in parameters], means, squares, [], steps, amsgrad=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"] * group["adam_scale"], weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip
