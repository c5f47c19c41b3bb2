"""Distillation of a Parallel WaveNet from a trained WaveNet: the loss of one step, for either kind of teacher.

    x, µ, log s = student(z, mel)      the teacher hears x and says what it expects of each sample
    Gaussian    KL + 4·(log s_q - log s_p)², in either direction                           (ClariNet, section 3.2)
    logistic    KL against the teacher's mixture, by Monte Carlo draws                     (Parallel WaveNet, section 4)
    + a spectral loss where a recording of the same mel is given, and the contrastive loss where another mel is
"""

import torch
from torch import Tensor

from fastvoc.errors import ConfigError
from fastvoc.losses.contrastive import contrastive_loss
from fastvoc.losses.density_distillation import logistic_kl
from fastvoc.losses.frame_loss import frame_loss
from fastvoc.losses.gaussian_kl import REGULARISATION, gaussian_kl, log_scale_distance
from fastvoc.models.parallel_wavenet import ParallelWaveNet, ParallelWaveNetConfig
from fastvoc.models.wavenet import WaveNet

DIRECTIONS = ("reverse", "forward")
HEADS = {"gaussian": "gaussian", "logistic": "mol"}  # what a teacher must say, by the student's distribution


def distill(
    student: ParallelWaveNet | ParallelWaveNetConfig,
    teacher: WaveNet,
    mel: Tensor,
    z: Tensor,
    wave: Tensor | None = None,
    *,
    run=None,
    uniform: Tensor | None = None,
    other_mel: Tensor | None = None,
    direction: str = "reverse",
    regularisation: float = REGULARISATION,
    spectral_loss=frame_loss,
    spectral_weight: float = 1.0,
    contrastive_weight: float = 0.3,
) -> dict[str, Tensor]:
    """The parts of one step's loss and their "total", all scalars. Gradients go to the student (and z), not to the teacher.

    mel        (B, n_mels, n_frames) with the context frames that student and teacher expect
    z          (B, T) noise of the student's kind
    wave       (B, T) the recording that mel is of; without it there is no spectral part
    run        (z, mel) -> x, mean, log_scale: what stands for the student, wrapped or with other weights, where its
               configuration is given
    uniform    (n, B, T) draws of the Monte Carlo sum, for a logistic student (the paper and upstream: n = 100)
    other_mel  of another utterance; without it there is no contrastive part
    direction  of a Gaussian divergence: "reverse" is KL(student ‖ teacher), ClariNet's default
    spectral_loss  (x, y) -> scalar: frame_loss, or power_loss with its options

    Raises ConfigError, ShapeError.
    """
    config = student if run is not None else student.config
    if teacher.config.head != HEADS[config.distribution]:
        raise ConfigError(
            f"a {config.distribution} student needs a teacher with the head "
            f"{HEADS[config.distribution]!r}, this one's is {teacher.config.head!r}"
        )
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction: got {direction!r}, expected one of {list(DIRECTIONS)}")
    if config.distribution == "logistic" and uniform is None:
        raise ConfigError("a logistic student needs uniform draws (n, B, T)")
    x, mean, log_scale = (run or student)(z, mel)
    first = config.first_sample
    said = torch.stack([mean, log_scale], 1)

    def divergence(mel_of_teacher):
        expected = _expected(teacher, x, mel_of_teacher, first)
        if config.distribution == "logistic":
            kl = logistic_kl(said, expected, uniform[:, :, first:], reduction="mean")
            return kl, kl.new_zeros(())
        pair = (said, expected) if direction == "reverse" else (expected, said)
        return gaussian_kl(*pair, reduction="mean"), log_scale_distance(*pair, reduction="mean")

    kl, distance = divergence(mel)
    parts = {"kl": kl, "regularisation": distance}
    total = kl
    if other_mel is not None:
        parts["mismatched_kl"] = divergence(other_mel)[0]
        total = contrastive_loss(kl, parts["mismatched_kl"], contrastive_weight)
    total = total + regularisation * distance
    if wave is not None:
        parts["spectral"] = spectral_loss(x[:, first:], wave[:, first:])
        total = total + spectral_weight * parts["spectral"]
    return {"total": total, **parts}


def _expected(teacher: WaveNet, x: Tensor, mel: Tensor, first_sample: int) -> Tensor:
    """(B, channels, T - first_sample): the teacher's distribution of each sample that the student has one of.

    A student that delays its input conditions sample t on the mel of t, and the teacher's input is delayed likewise; one
    that shifts its output conditions it on the mel of t - 1, as ClariNet's teachers are trained.
    """
    frozen = {name: p.detach() for name, p in teacher.named_parameters()}
    heard = x if first_sample else torch.nn.functional.pad(x[:, :-1], (1, 0))
    expected = torch.func.functional_call(teacher, frozen, (heard[:, None], mel))
    return expected[:, :, :-1] if first_sample else expected
