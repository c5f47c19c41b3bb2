"""What WaveGlow is trained on: the likelihood of the wave given its mel."""

from torch import Tensor

from fastvoc.losses.waveglow import waveglow_loss
from fastvoc.models.waveglow import WaveGlow
from fastvoc.training.task import Draws, Task


class WaveGlowTask(Task):
    Model = WaveGlow
    loss_unit = "nats per sample, up to a constant"

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        """With memory_efficient in the training options the activations of one flow are kept, not of all. `dither` is the
        deviation of normal noise on the waves: the likelihood of exact digital silence has no bound, and a flow that is
        shown it spends itself there.
        """
        waves = waves + self.options.get("dither", 0.0) * draws.normal(waves.shape[1])
        z, log_s, log_det = networks["model"](waves, mels, self.options.get("memory_efficient", False))
        return {"likelihood": waveglow_loss(z, log_s, log_det, self.recipe.get("sigma", 1.0))}
