"""What a user with `mypy --strict` writes: test_types.py checks that it has no error. Not run."""

from pathlib import Path

import torch
from torch import Tensor

import fastvoc
from fastvoc.audio import MelConfig, mel_spectrogram, read_wav, write_wav
from fastvoc.errors import CheckpointError, FastvocError
from fastvoc.layers import CausalConv1d, GatedActivation, GatedResidualStack, Invertible1x1Conv
from fastvoc.losses import gaussian_loss, multi_resolution_stft_loss
from fastvoc.models import WaveGlow, WaveGlowConfig
from fastvoc.models.vocoder import Vocoder
from fastvoc.models.wavenet_streams import generate
from fastvoc.ops.gated_activation import gated_activation


def speak(checkpoint: Path, mel: Tensor) -> Tensor:
    fastvoc.set_num_threads(2)
    try:
        model: Vocoder = fastvoc.load(checkpoint, precision="bf16")
    except CheckpointError as fault:
        raise SystemExit(str(fault)) from fault
    rate: int | None = model.sample_rate
    samples: int = model.hop_length * mel.shape[-1]
    print(rate, samples, fastvoc.cpu_isa(), fastvoc.get_num_threads())
    with fastvoc.backend("cpu"):
        wav: Tensor = model.infer(mel, seed=1, lengths=[120, 95])
    model.save_pretrained("folder")
    return wav


def stream(model: fastvoc.WaveNet, first: Tensor, last: Tensor) -> list[Tensor]:
    one = model.stream(seed=1, precision="int8", threads=1)
    one.push(first)
    [samples], _ = generate([one])
    saved = one.state_dict()
    one.load_state_dict(saved)
    one.push(last, last=True)
    [rest], _ = generate([one])
    return [samples, rest]


def train(x: Tensor, target: Tensor) -> Tensor:
    conv, gate = CausalConv1d(64, 128, kernel_size=2, dilation=8), GatedActivation()
    y: Tensor = gate(conv(x))
    piece, state = conv.step(x[..., :10], conv.begin(x.shape[0]))
    stack = GatedResidualStack(64, 128, 64, 0, 3, [1, 2, 4])
    z: Tensor = stack.infer(y.transpose(1, 2))
    flow = Invertible1x1Conv(64)
    print(piece.shape, state.shape, flow(z.transpose(1, 2)))
    loss: Tensor = gaussian_loss(y, target) + sum(multi_resolution_stft_loss(target, target))
    return loss + gated_activation(x, x).mean()


def copy_synthesis(path: str, module: torch.nn.Module) -> None:
    wav, rate = read_wav(path)
    mel = mel_spectrogram(torch.from_numpy(wav)[None], MelConfig.preset("tacotron", sample_rate=rate))
    fast: Vocoder = fastvoc.accelerate(module, precision="bf16")
    glow = WaveGlow(WaveGlowConfig(n_mel_channels=80))
    try:
        audio: Tensor = glow.infer(mel, sigma=0.8)
    except FastvocError as fault:
        print(fault, fault.hint)
        audio = fast.infer(mel)
    write_wav("out.wav", audio[0].numpy(), rate)
