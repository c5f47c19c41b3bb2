"""Small modules with the attributes and parameter names of the public implementations' classes, and what those compute.

Written from the papers and the layouts of their checkpoints, for tests of what takes an instance of such a class.
"""

import math

import numpy as np
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


class IndentedUpsampleNetwork(UpsampleNetwork):
    """r9y9's: the samples of `cin_pad` context frames on each side are cut off."""

    def __init__(self, cin_pad, scales, *args):
        super().__init__(scales, *args)
        self.indent = cin_pad * np.prod(scales)  # a number of NumPy's, as upstream's

    def forward(self, c):
        return super().forward(c)[:, :, self.indent : -self.indent]


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


# ---- r9y9/wavenet_vocoder --------------------------------------------------------------------------------------------


class CausalConv(nn.Conv1d):
    def forward(self, x):
        reach = (self.kernel_size[0] - 1) * self.dilation[0]
        return F.conv1d(F.pad(x, (reach, 0)), self.weight, self.bias, dilation=self.dilation)


class R9y9Block(nn.Module):
    def __init__(self, R, G, S, kernel, dilation, cin, gin, cond_bias):
        super().__init__()
        self.dropout = 0.05
        self.conv = weight_norm(CausalConv(R, G, kernel, dilation=dilation))
        self.conv1x1c = weight_norm(nn.Conv1d(cin, G, 1, bias=cond_bias)) if cin > 0 else None
        self.conv1x1g = weight_norm(nn.Conv1d(gin, G, 1, bias=cond_bias)) if gin > 0 else None
        self.conv1x1_out, self.conv1x1_skip = (weight_norm(nn.Conv1d(G // 2, n, 1)) for n in (R, S))

    def forward(self, x, c, g):
        a = self.conv(x)
        a = a if c is None else a + self.conv1x1c(c)
        a = a if g is None else a + self.conv1x1g(g)
        a, b = a.chunk(2, 1)
        z = a.tanh() * b.sigmoid()
        return (self.conv1x1_out(z) + x) * math.sqrt(0.5), self.conv1x1_skip(z)


class R9y9Upsampler2018(nn.ModuleList):
    """One ConvTranspose2d and a ReLU for each scale."""

    def __init__(self, scales, freq_kernel=3):
        super().__init__()
        for s in scales:
            padding = ((freq_kernel - 1) // 2, 0)
            self += [weight_norm(nn.ConvTranspose2d(1, 1, (freq_kernel, s), stride=(1, s), padding=padding)), nn.ReLU()]

    def forward(self, c):
        c = c[:, None]
        for layer in self:
            c = layer(c)
        return c[:, 0]


class R9y9WaveNet(nn.Module):
    """net: an upsampler; of_2018: under its name of then, with biases and skips that are halved on the way."""

    def __init__(
        self, out_channels=6, scalar_input=True, R=6, G=8, S=5, kernel=3, layers=4, stacks=2, cin=4, gin=-1, n_speakers=None,
        net=None, of_2018=False, distribution="Logistic",
    ):  # fmt: skip
        super().__init__()
        self.scalar_input, self.out_channels, self.cin_channels = scalar_input, out_channels, cin
        self.of_2018 = of_2018
        if of_2018:
            self.upsample_conv = net
        else:
            self.output_distribution, self.upsample_net = distribution, net
        self.first_conv = weight_norm(nn.Conv1d(1 if scalar_input else out_channels, R, 1))
        self.conv_layers = nn.ModuleList(
            R9y9Block(R, G, S, kernel, 2 ** (i % (layers // stacks)), cin, gin, of_2018) for i in range(layers)
        )
        self.last_conv_layers = nn.ModuleList(
            [nn.ReLU(), weight_norm(nn.Conv1d(S, S, 1)), nn.ReLU(), weight_norm(nn.Conv1d(S, out_channels, 1))]
        )
        self.embed_speakers = nn.Embedding(n_speakers, gin) if n_speakers else None

    def forward(self, x, c=None, g=None, softmax=False):
        of_2018 = self.of_2018
        net = self.upsample_conv if of_2018 else self.upsample_net
        c = c if c is None or net is None else net(c)
        g = g if g is None or self.embed_speakers is None else self.embed_speakers(g.reshape(-1, 1)).transpose(1, 2)
        x, skips = self.first_conv(x), None
        for block in self.conv_layers:
            x, skip = block(x, c, g)
            skips = skip if skips is None else (skips + skip) * (math.sqrt(0.5) if of_2018 else 1.0)
        x = skips if of_2018 else skips * math.sqrt(1 / len(self.conv_layers))
        for layer in self.last_conv_layers:
            x = layer(x)
        return x.softmax(1) if softmax else x


# ---- ksw0306/ClariNet ------------------------------------------------------------------------------------------------


class ClarinetConv(nn.Module):
    def __init__(self, n_in, n_out, kernel, dilation=1):
        super().__init__()
        self.conv = weight_norm(CausalConv(n_in, n_out, kernel, dilation=dilation))

    def forward(self, x):
        return self.conv(x)


class ClarinetBlock(nn.Module):
    def __init__(self, R, G, S, kernel, dilation, cin):
        super().__init__()
        self.filter_conv, self.gate_conv = (ClarinetConv(R, G, kernel, dilation) for _ in range(2))
        self.res_conv, self.skip_conv = (weight_norm(nn.Conv1d(G, n, 1)) for n in (R, S))
        self.filter_conv_c, self.gate_conv_c = (weight_norm(nn.Conv1d(cin, G, 1)) for _ in range(2))

    def forward(self, x, c):
        z = (self.filter_conv(x) + self.filter_conv_c(c)).tanh() * (self.gate_conv(x) + self.gate_conv_c(c)).sigmoid()
        return (x + self.res_conv(z)) * math.sqrt(0.5), self.skip_conv(z)


class ClarinetFlow(nn.Module):
    def __init__(self, R=6, G=4, S=5, front=4, kernel=2, blocks=2, layers=3, cin=4, base=2):
        super().__init__()
        self.num_blocks, self.num_layers = blocks, layers
        self.front_conv = nn.Sequential(ClarinetConv(1, R, front), nn.ReLU())
        dilations = [base**n for n in range(layers)] * blocks
        self.res_blocks = nn.ModuleList(ClarinetBlock(R, G, S, kernel, d, cin) for d in dilations)
        self.final_conv = nn.Sequential(nn.ReLU(), ClarinetConv(S, S, 1), nn.ReLU(), ClarinetConv(S, 2, 1))

    def wavenet(self, x, c):
        x, skips = self.front_conv(x), 0.0
        for block in self.res_blocks:
            x, skip = block(x, c)
            skips = skips + skip
        return self.final_conv(skips)


class ClarinetTeacher(ClarinetFlow):
    def __init__(self, scales=(2, 4), **sizes):
        super().__init__(**{"base": sizes.get("kernel", 2), **sizes})
        self.upsample_conv = nn.ModuleList()
        for s in scales:
            conv = nn.ConvTranspose2d(1, 1, (3, 2 * s), padding=(1, s // 2), stride=(1, s))
            self.upsample_conv += [weight_norm(conv), nn.LeakyReLU(0.4)]

    def upsample(self, c):
        c = c[:, None]
        for layer in self.upsample_conv:
            c = layer(c)
        return c[:, 0]

    def forward(self, x, c):
        return self.wavenet(x, self.upsample(c))


class ClarinetStudent(nn.Module):
    def __init__(self, blocks=(1, 2), layers=3, R=6, G=4, S=5, kernel=3, cin=4):
        super().__init__()
        self.iafs = nn.ModuleList(ClarinetFlow(R, G, S, 4, kernel, b, layers, cin) for b in blocks)

    def generate(self, z, c_up):
        for iaf in self.iafs:
            mean, log_scale = iaf.wavenet(z, c_up)[:, :, :-1].chunk(2, 1)
            z = F.pad(z[:, :, 1:] * log_scale.exp() + mean, (1, 0))
        return z


# ---- NVIDIA/waveglow -------------------------------------------------------------------------------------------------


class Invertible1x1(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv1d(c, c, 1, bias=False)


class WN(nn.Module):
    def __init__(self, n_in, n_cond, layers, C, kernel, fused):
        super().__init__()
        self.start, self.end = weight_norm(nn.Conv1d(n_in, C, 1)), nn.Conv1d(C, 2 * n_in, 1)
        self.in_layers = nn.ModuleList(
            weight_norm(nn.Conv1d(C, 2 * C, kernel, dilation=2**i, padding=(kernel - 1) * 2**i // 2)) for i in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(
            weight_norm(nn.Conv1d(C, 2 * C if i < layers - 1 else C, 1)) for i in range(layers)
        )
        if fused:
            self.cond_layer = weight_norm(nn.Conv1d(n_cond, 2 * C * layers, 1))
        else:
            self.cond_layers = nn.ModuleList(weight_norm(nn.Conv1d(n_cond, 2 * C, 1)) for _ in range(layers))

    def forward(self, x, c):
        x, output, last = self.start(x), 0.0, len(self.in_layers) - 1
        C = x.shape[1]
        conds = (
            self.cond_layer(c).split(2 * C, 1) if hasattr(self, "cond_layer") else [layer(c) for layer in self.cond_layers]
        )
        for i, (conv, res_skip, cond) in enumerate(zip(self.in_layers, self.res_skip_layers, conds)):
            a, b = (conv(x) + cond).chunk(2, 1)
            y = res_skip(a.tanh() * b.sigmoid())
            x, output = (x + y[:, :C], output + y[:, C:]) if i < last else (x, output + y)
        return self.end(output)


class WaveGlow(nn.Module):
    """draws: the normal numbers that `infer` uses, in its order. alternating: the halves change places, as in glow_old."""

    def __init__(self, n_mels=4, flows=5, group=8, every=2, early=2, layers=2, C=6, kernel=3, fused=True, hop=4, window=16):
        super().__init__()
        self.upsample = nn.ConvTranspose1d(n_mels, n_mels, window, stride=hop)
        self.n_flows, self.n_group, self.n_early_every, self.n_early_size = flows, group, every, early
        self.convinv, self.WN, remaining = nn.ModuleList(), nn.ModuleList(), group
        for k in range(flows):
            remaining -= early if k and k % every == 0 else 0
            self.convinv.append(Invertible1x1(remaining))
            self.WN.append(WN(remaining // 2, n_mels * group, layers, C, kernel, fused))
        self.n_remaining_channels = remaining

    def infer(self, spect, sigma=1.0, draws=None, alternating=False):
        c = self.upsample(spect)[:, :, : -(self.upsample.kernel_size[0] - self.upsample.stride[0])]
        c = c.unfold(2, self.n_group, self.n_group).permute(0, 2, 1, 3).flatten(2).transpose(1, 2)
        draws = iter(draws)
        x = sigma * next(draws)
        for k in reversed(range(self.n_flows)):
            halves = list(x.chunk(2, 1))
            kept, changed = (1, 0) if alternating and k % 2 else (0, 1)
            b, s = self.WN[k](halves[kept], c).chunk(2, 1)
            halves[changed] = (halves[changed] - b) / s.exp()
            x = F.conv1d(torch.cat(halves, 1), self.convinv[k].conv.weight[:, :, 0].inverse()[:, :, None])
            if k and k % self.n_early_every == 0:
                x = torch.cat([sigma * next(draws), x], 1)
        return x.transpose(1, 2).flatten(1)
