"""ksw0306/ClariNet: Wavenet with `generate(num_samples, c)` and `upsample(c)`, Wavenet_Student with `generate(z, c_up)`.

A student is conditioned on what its teacher's upsampler makes of the mel. With teacher=, the teacher's module, it has
that upsampler and so an `infer` too.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastvoc.adapters.becoming import become, in_dtype_of
from fastvoc.checkpoints import clarinet
from fastvoc.errors import ConfigError, IncompatibleCheckpointError, ShapeError
from fastvoc.models.parallel_wavenet import ParallelWaveNet
from fastvoc.models.pretrained import load_weights
from fastvoc.models.vocoder import fresh_seed
from fastvoc.models.wavenet import WaveNet

UPSTREAM = "ksw0306/ClariNet's Wavenet and Wavenet_Student"
NO_UPSAMPLER = {"0.weight": torch.zeros(1, 1, 1, 2), "0.bias": torch.zeros(1)}  # of a student without its teacher


class Teacher(WaveNet):
    """WaveNet with the upstream's methods."""

    def generate(self, num_samples: int, c: Tensor) -> Tensor:
        """c (B, n_mels, n_frames) -> (B, 1, num_samples), on the CPU as upstream's."""
        c = in_dtype_of(self, c)
        covered = c.shape[-1] * self.samples_per_frame
        if num_samples > covered:
            raise ShapeError(f"c covers {covered} samples, num_samples is {num_samples}")
        return self.infer(c, seed=fresh_seed())[:, None, :num_samples].cpu()

    def upsample(self, c: Tensor) -> Tensor:
        """(B, n_mels, n_frames) -> (B, n_mels, n_samples), what a student is conditioned on."""
        return self.upsample_net(in_dtype_of(self, c))


class Student(ParallelWaveNet):
    """ParallelWaveNet with the upstream's `generate`."""

    has_upsampler = False

    @torch.no_grad()
    def generate(self, z: Tensor, c_up: Tensor) -> Tensor:
        """Noise z (B, 1, T), the mel at sample rate c_up (B, n_mels, T) -> (B, 1, T)"""
        z, c_up = in_dtype_of(self, z), in_dtype_of(self, c_up)
        if z.dim() != 3 or z.shape[1] != 1:
            raise ShapeError(f"z is {tuple(z.shape)}, expected (B, 1, T)")
        return self._flow(z[:, 0], c_up.transpose(1, 2).contiguous(), precision=self.precision)[0][:, None]

    def infer(self, mel: Tensor, **options) -> Tensor:
        if not self.has_upsampler:
            raise ConfigError("this student came without its teacher, which has the upsampler.",
                              hint="Use accelerate(student, teacher=teacher), or generate(z, c_up).")  # fmt: skip
        return super().infer(mel, **options)

    def remove_weight_norm(self) -> None:
        """For the upstream's callers: the weights have no weight norm any more."""


def matches(module: nn.Module, names: set[str]) -> bool:
    return clarinet.matches(dict.fromkeys(names), None)


def adapt(module: nn.Module, state: dict[str, Tensor], teacher: nn.Module | None = None) -> Teacher | Student:
    """teacher: the module with the student's upsampler"""
    name = type(module).__name__
    if not all(getattr(part, "causal", True) for part in (module, *getattr(module, "iafs", ()))):
        raise ConfigError(f"{name} was made with causal=False: it sees the future, and cannot generate sample by sample")
    try:
        if not hasattr(module, "iafs"):
            return _teacher(module, state, teacher, name)
        dilations = [[block.filter_conv.conv.dilation[0] for block in flow.res_blocks] for flow in module.iafs]
        upsampler = None if teacher is None else teacher.upsample_conv.state_dict()
    except (AttributeError, TypeError) as fault:
        raise IncompatibleCheckpointError(f"{name} lacks what ClariNet's modules have: {fault}") from None
    given = {f"upsample_conv.{key}": value.detach().cpu().float() for key, value in (upsampler or NO_UPSAMPLER).items()}
    ours = clarinet.complete(name, clarinet.canonical, state, given)
    config = replace(clarinet.complete(name, clarinet.student_config, ours, 1), dilations=dilations)
    model = ParallelWaveNet(config)
    load_weights(model, ours, name)
    model = become(Student, model)
    model.has_upsampler = upsampler is not None
    return model


def _teacher(module: nn.Module, state: dict[str, Tensor], teacher, name: str) -> Teacher:
    if teacher is not None:
        raise ConfigError("this module is a ClariNet teacher itself; teacher= belongs to a student")
    ours = clarinet.complete(name, clarinet.canonical, state)
    dilations = [block.filter_conv.conv.dilation[0] for block in module.res_blocks]
    # As many blocks as layers: any number of these fits, and the dilations are replaced
    config = clarinet.complete(name, clarinet.teacher_config, ours, len(dilations))
    model = WaveNet(replace(config, dilations=dilations))
    load_weights(model, ours, name)
    return become(Teacher, model)
