"""Small modules with the attributes and parameter names of the public implementations' classes, and what those compute.

Written from the papers and the layouts of their checkpoints, for tests of what takes an instance of such a class.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import weight_norm


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of which every one matters, in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 1
            p.copy_(torch.randn(p.shape, generator=rng) / math.sqrt(fan_in) * (0.2 if p.dim() < 2 else 1.0))
            if name.endswith("weight_g"):
                p.abs_().add_(0.5)
    return module.eval()


class Params(dict):
    """Entries that are attributes too."""

    __getattr__ = dict.__getitem__

    def override(self, changes):
        self.update(changes or {})


# ---- lmnt-com/diffwave -----------------------------------------------------------------------------------------------


class LmntBlock(nn.Module):
    def __init__(self, n_mels, C, dilation, uncond):
        super().__init__()
        self.dilated_conv = nn.Conv1d(C, 2 * C, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(512, C)
        self.conditioner_projection = None if uncond else nn.Conv1d(n_mels, 2 * C, 1)
        self.output_projection = nn.Conv1d(C, 2 * C, 1)

    def forward(self, x, step, mel):
        a = self.dilated_conv(x + self.diffusion_projection(step)[:, :, None])
        a = a if mel is None else a + self.conditioner_projection(mel)
        gate, filter = a.chunk(2, 1)
        residual, skip = self.output_projection(gate.sigmoid() * filter.tanh()).chunk(2, 1)
        return (x + residual) / math.sqrt(2), skip


class LmntEmbedding(nn.Module):
    def __init__(self, n_steps):
        super().__init__()
        angles = torch.arange(n_steps)[:, None] * 10.0 ** (torch.arange(64) * 4.0 / 63.0)
        self.register_buffer("embedding", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.projection1, self.projection2 = nn.Linear(128, 512), nn.Linear(512, 512)

    def forward(self, t):
        low, high = self.embedding[t.floor().long()], self.embedding[t.ceil().long()]
        return F.silu(self.projection2(F.silu(self.projection1(low + (high - low) * (t - t.floor())[:, None]))))


class LmntUpsampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(1, 1, (3, 32), stride=(1, 16), padding=(1, 8))
        self.conv2 = nn.ConvTranspose2d(1, 1, (3, 32), stride=(1, 16), padding=(1, 8))

    def forward(self, mel):
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(mel[:, None]), 0.4)), 0.4)[:, 0]


class LmntDiffWave(nn.Module):
    def __init__(self, params):
        super().__init__()
        C, self.params, uncond = params["residual_channels"], params, params.get("unconditional", False)
        self.input_projection = nn.Conv1d(1, C, 1)
        self.diffusion_embedding = LmntEmbedding(len(params["noise_schedule"]))
        self.spectrogram_upsampler = None if uncond else LmntUpsampler()
        self.residual_layers = nn.ModuleList(
            LmntBlock(params["n_mels"], C, 2 ** (i % params["dilation_cycle_length"]), uncond)
            for i in range(params["residual_layers"])
        )
        self.skip_projection, self.output_projection = nn.Conv1d(C, C, 1), nn.Conv1d(C, 1, 1)

    def forward(self, audio, diffusion_step, spectrogram=None):
        x, step, skips = F.relu(self.input_projection(audio[:, None])), self.diffusion_embedding(diffusion_step), 0.0
        mel = None if spectrogram is None else self.spectrogram_upsampler(spectrogram)
        for layer in self.residual_layers:
            x, skip = layer(x, step, mel)
            skips = skips + skip
        return self.output_projection(F.relu(self.skip_projection(skips / math.sqrt(len(self.residual_layers)))))


# ---- philsyn/DiffWave-Vocoder ----------------------------------------------------------------------------------------


class PhilsynConv(nn.Module):
    def __init__(self, n_in, n_out, kernel=1, dilation=1):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = weight_norm(nn.Conv1d(n_in, n_out, kernel, dilation=dilation, padding=padding))

    def forward(self, x):
        return self.conv(x)


class PlainConv(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, 1)

    def forward(self, x):
        return self.conv(x)


class PhilsynBlock(nn.Module):
    def __init__(self, C, S, dilation, D, n_mels):
        super().__init__()
        self.fc_t = nn.Linear(D, C)
        self.dilated_conv_layer = PhilsynConv(C, 2 * C, 3, dilation)
        up = lambda: weight_norm(nn.ConvTranspose2d(1, 1, (3, 32), stride=(1, 16), padding=(1, 8)))
        self.upsample_conv2d = nn.ModuleList([up(), up()])
        self.mel_conv = PhilsynConv(n_mels, 2 * C)
        self.res_conv, self.skip_conv = weight_norm(nn.Conv1d(C, C, 1)), weight_norm(nn.Conv1d(C, S, 1))

    def forward(self, x, mel, step):
        x = x + self.fc_t(step)[:, :, None]  # and so the residual path carries it
        c = mel[:, None]
        for conv in self.upsample_conv2d:
            c = F.leaky_relu(conv(c), 0.4)
        a = self.dilated_conv_layer(x) + self.mel_conv(c[:, 0, :, : x.shape[2]])
        filter, gate = a.chunk(2, 1)
        z = filter.tanh() * gate.sigmoid()
        return (x + self.res_conv(z)) * math.sqrt(0.5), self.skip_conv(z)


class PhilsynGroup(nn.Module):
    def __init__(self, C, S, layers, cycle, D, n_mels):
        super().__init__()
        self.fc_t1, self.fc_t2 = nn.Linear(D, 24), nn.Linear(24, 20)
        self.residual_blocks = nn.ModuleList(PhilsynBlock(C, S, 2 ** (i % cycle), 20, n_mels) for i in range(layers))
        self.D = D

    def forward(self, x, mel, steps):
        frequencies = torch.exp(torch.arange(self.D // 2) * -(math.log(10000) / (self.D // 2 - 1)))
        angles = steps.float() * frequencies
        step = F.silu(self.fc_t2(F.silu(self.fc_t1(torch.cat([angles.sin(), angles.cos()], 1)))))
        skips = 0.0
        for block in self.residual_blocks:
            x, skip = block(x, mel, step)
            skips = skips + skip
        return skips * math.sqrt(1 / len(self.residual_blocks))


class PhilsynWaveNet(nn.Module):
    def __init__(self, C=6, S=5, layers=4, cycle=3, D=16, n_mels=7):
        super().__init__()
        self.init_conv = nn.Sequential(PhilsynConv(1, C), nn.ReLU())
        self.residual_layer = PhilsynGroup(C, S, layers, cycle, D, n_mels)
        self.final_conv = nn.Sequential(PhilsynConv(S, S), nn.ReLU(), PlainConv(S, 1))

    def forward(self, input_data):
        audio, mel, steps = input_data
        return self.final_conv(self.residual_layer(self.init_conv(audio), mel, steps))


# ---- kan-bayashi/ParallelWaveGAN and r9y9/wavenet_vocoder share these ------------------------------------------------


class Stretch2d(nn.Module):
    def __init__(self, x_scale, y_scale, mode="nearest"):
        super().__init__()
        self.x_scale, self.y_scale, self.mode = x_scale, y_scale, mode

    def forward(self, x):
        return F.interpolate(x, scale_factor=(self.y_scale, self.x_scale), mode=self.mode)


class UpsampleNetwork(nn.Module):
    def __init__(self, scales, activation=None, freq_kernel=1):
        super().__init__()
        self.up_layers = nn.ModuleList()
        for s in scales:
            conv = nn.Conv2d(1, 1, (freq_kernel, 2 * s + 1), padding=(freq_kernel // 2, s), bias=False)
            self.up_layers += [Stretch2d(s, 1), weight_norm(conv), *([] if activation is None else [activation])]

    def forward(self, c):
        c = c[:, None]
        for layer in self.up_layers:
            c = layer(c)
        return c[:, 0]


class CausalUpsampleNetwork(UpsampleNetwork):
    """Of one stage: the convolution sees the past only."""

    use_causal_conv = True

    def forward(self, c):
        scale = self.up_layers[0].x_scale
        return super().forward(F.pad(c, (1, 0)))[:, :, : scale * c.shape[2]]


class ConvInUpsampleNetwork(nn.Module):
    def __init__(self, n_mels, context, *args):
        super().__init__()
        self.conv_in = weight_norm(nn.Conv1d(n_mels, n_mels, 2 * context + 1, bias=False))
        self.upsample = UpsampleNetwork(*args)

    def forward(self, c):
        return self.upsample(self.conv_in(c))


class PwgBlock(nn.Module):
    def __init__(self, R, G, S, n_mels, kernel, dilation, causal):
        super().__init__()
        self.use_causal_conv, self.dropout = causal, 0.0
        padding = (kernel - 1) * dilation // (1 if causal else 2)
        self.conv = weight_norm(nn.Conv1d(R, G, kernel, dilation=dilation, padding=padding))
        self.conv1x1_aux = weight_norm(nn.Conv1d(n_mels, G, 1, bias=False))
        self.conv1x1_out, self.conv1x1_skip = (weight_norm(nn.Conv1d(G // 2, n, 1)) for n in (R, S))

    def forward(self, x, c):
        a, b = (self.conv(x)[:, :, : x.shape[2]] + self.conv1x1_aux(c)).chunk(2, 1)
        z = a.tanh() * b.sigmoid()
        return (self.conv1x1_out(z) + x) * math.sqrt(0.5), self.conv1x1_skip(z)


class PwgGenerator(nn.Module):
    def __init__(self, R=6, G=8, S=5, n_mels=4, context=2, kernel=3, layers=4, stacks=2, causal=False, net=None):
        super().__init__()
        self.aux_channels, self.aux_context_window = n_mels, context
        self.first_conv = weight_norm(nn.Conv1d(1, R, 1))
        self.upsample_net = net if net is not None else ConvInUpsampleNetwork(n_mels, context, [2, 3])
        cycle = layers // stacks
        self.conv_layers = nn.ModuleList(PwgBlock(R, G, S, n_mels, kernel, 2 ** (i % cycle), causal) for i in range(layers))
        self.last_conv_layers = nn.ModuleList(
            [nn.ReLU(), weight_norm(nn.Conv1d(S, S, 1)), nn.ReLU(), weight_norm(nn.Conv1d(S, 1, 1))]
        )

    def forward(self, z, c):
        x, c, skips = self.first_conv(z), self.upsample_net(c), 0.0
        for block in self.conv_layers:
            x, skip = block(x, c)
            skips = skips + skip
        x = skips * math.sqrt(1 / len(self.conv_layers))
        for layer in self.last_conv_layers:
            x = layer(x)
        return x

    def inference(self, c, x=None, normalize_before=False):
        x = torch.randn(1, 1, len(c) * 6) if x is None else x.t()[None]
        c = (c - self.mean) / self.scale if normalize_before else c
        return self(x, F.pad(c.t()[None], (self.aux_context_window, self.aux_context_window), mode="replicate"))[0].t()
