"""r9y9/wavenet_vocoder's WaveNet, of 2018 and later: `incremental_forward(initial_input, c, g, T, …)`."""

import math
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.adapters.becoming import become, in_dtype_of
from fastvoc.adapters.structure import dilation_cycle, upsampler
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.checkpoints import r9y9
from fastvoc.errors import ConfigError, IncompatibleCheckpointError, ShapeError
from fastvoc.models.vocoder import fresh_seed
from fastvoc.models.wavenet import WaveNet

UPSTREAM = "r9y9/wavenet_vocoder's WaveNet"
START = 127  # the class before the first, where incremental_forward is given none; in upstream's code whatever the classes


class R9y9WaveNet(WaveNet):
    """WaveNet with the upstream's `incremental_forward`."""

    def incremental_forward(
        self, initial_input=None, c=None, g=None, T=100, test_inputs=None, tqdm=lambda x: x, softmax=True, quantize=True,
        log_scale_min=None,
    ) -> Tensor:  # fmt: skip
        """c (B, n_mels, n_frames) with its context frames, or at sample rate where the model has no upsampler; g (B, 1) speaker
        numbers or (B, gin_channels, 1) features -> samples (B, 1, T), or one-hot classes (B, out_channels, T).

        Random numbers are drawn by position, from a seed that torch's generator gives. log_scale_min has no effect.
        """
        if test_inputs is not None:
            raise ConfigError("incremental_forward takes no test_inputs here.", hint="Use infer(forced=…) or forward.")
        if not self.config.scalar_input and not (softmax and quantize):
            raise ConfigError("incremental_forward feeds back samples: softmax and quantize must be True.",
                              hint="forward gives the distribution of given samples.")  # fmt: skip
        size = {"n_samples": int(T)} if c is None else {"padded": True}
        c, g = in_dtype_of(self, c), in_dtype_of(self, g)
        if c is not None:
            covered = (c.shape[-1] - 2 * self.context_frames) * self.samples_per_frame
            if covered != T:
                raise ShapeError(f"c covers {covered} samples, T is {T}")
        g = None if g is None else g.reshape(len(g), -1) if g.is_floating_point() else g.reshape(-1)
        steps = iter(tqdm(range(int(T))))
        seen = 0

        def progress(done, total):
            nonlocal seen
            while seen < done:
                next(steps, None)
                seen += 1

        initial = None if initial_input is None else self._initial(initial_input)
        if initial is None and not self.config.scalar_input and self.config.out_channels > START:
            initial = float(START)
        wave = self.infer(c, g, seed=fresh_seed(), initial=initial, progress=progress, **size)
        next(steps, None)  # lets a progress bar close
        if self.config.scalar_input:
            return wave[:, None]
        return F.one_hot(mulaw_encode(wave, self.config.mulaw_classes).long(), self.config.out_channels).transpose(1, 2).float()

    def _initial(self, given: Tensor) -> float:
        """(B, channels, 1), or (B, 1, channels) -> the sample or class before the first."""
        rows = given.reshape(len(given), -1)
        values = (rows[:, 0] if self.config.scalar_input else rows.argmax(1).float()).tolist()
        if len(set(values)) != 1:
            raise ConfigError(f"initial_input starts its items from {values}; here they start from one and the same")
        return values[0]

    def clear_buffer(self) -> None:
        """For the upstream's callers: no state is kept between calls."""

    def make_generation_fast_(self) -> None:
        """For the upstream's callers: the weights have no weight norm any more."""


def matches(module: nn.Module, names: set[str]) -> bool:
    return r9y9.matches(dict.fromkeys(names), None)


def adapt(module: nn.Module, state: dict[str, Tensor]) -> R9y9WaveNet:
    name = type(module).__name__
    return become(R9y9WaveNet, r9y9.from_state(state, hparams_of(module, name), name, Path(name)))


def hparams_of(module: nn.Module, name: str) -> dict:
    """What hparams.json would say, so far as the weights' shapes do not."""
    try:
        blocks = module.conv_layers
        hparams = {
            "stacks": len(blocks) // dilation_cycle([block.conv for block in blocks]),
            "dropout": float(getattr(blocks[0], "dropout", 0.0)),
            "input_type": "raw" if module.scalar_input else "mulaw-quantize",
            "output_distribution": getattr(module, "output_distribution", "Logistic"),
        }
        if hasattr(module, "legacy"):
            hparams["legacy"] = module.legacy
        if not hasattr(module, "output_distribution"):  # as in the code until 2019-08
            hparams["weight_normalization"] = True
        net = getattr(module, "upsample_net", None)
        if net is not None:
            _, hparams["upsample_params"] = upsampler(net)
            if getattr(net, "indent", 0):
                hparams["cin_pad"] = int(net.indent) // math.prod(hparams["upsample_params"]["upsample_scales"])
        return hparams
    except (AttributeError, IndexError) as fault:
        raise IncompatibleCheckpointError(f"{name} lacks what r9y9's WaveNet has: {fault}") from None
