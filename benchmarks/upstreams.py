"""The public packages' own models, given our weights: what users run today. Installed by hand, never needed.

    pip install --no-deps --target DIR parallel_wavegan diffwave;  PYTHONPATH=DIR python -m benchmarks models
"""

import math

import torch


@torch.no_grad()
def parallel_wavegan(model, mel, noise):
    """kan-bayashi's ParallelWaveGANGenerator.inference, weight norm removed as its README advises."""
    import scipy.signal

    if not hasattr(scipy.signal, "kaiser"):  # the package was written for an older scipy
        scipy.signal.kaiser = scipy.signal.windows.kaiser
    from parallel_wavegan.models.parallel_wavegan import ParallelWaveGANGenerator

    c, theirs = model.config, ParallelWaveGANGenerator(upsample_params={"upsample_scales": [4, 4, 4, 4]}).eval()
    theirs.remove_weight_norm()
    R = c.residual_channels
    pairs = [(theirs.first_conv, model.first_conv)]
    pairs += list(zip(theirs.last_conv_layers[1::2], model.last_conv_layers[1::2]))
    for a, b in pairs:
        a.weight.copy_(b.weight), a.bias.copy_(b.bias)
    scale = math.sqrt(len(model.stack.layers))  # the sum of skips is scaled by √(1/L) there, and by W_out here
    for block, layer in zip(theirs.conv_layers, model.stack.layers):
        block.conv.weight.copy_(layer.conv.weight), block.conv.bias.copy_(layer.conv.bias)
        block.conv1x1_aux.weight.copy_(layer.cond.weight)
        for conv, rows, by in ((block.conv1x1_out, slice(R), 1), (block.conv1x1_skip, slice(R, None), scale)):
            conv.weight.copy_(layer.out.weight[rows] * by), conv.bias.copy_(layer.out.bias[rows] * by)
    theirs.upsample_net.load_state_dict(model.upsample_net.state_dict())
    frames = mel[0].t().contiguous()

    @torch.inference_mode()
    def run():
        return theirs.inference(frames, noise[0].view(-1, 1)).view(1, -1)

    return run


@torch.no_grad()
def diffwave(model, mel, noise, schedule):
    """lmnt's DiffWave in the loop of its `predict`, which itself reads a file and a GPU by name."""
    from diffwave.model import DiffWave
    from diffwave.params import params

    theirs = DiffWave(params).eval()
    R, root = model.config.residual_channels, math.sqrt(model.config.layers)
    swapped = lambda t: torch.cat(t.chunk(2)[::-1])  # there the sigmoid half comes first
    pairs = [
        (theirs.input_projection, model.input_projection), (theirs.skip_projection, model.skip_projection),
        (theirs.output_projection, model.output_projection),
        (theirs.diffusion_embedding.projection1, model.step_projection1),
        (theirs.diffusion_embedding.projection2, model.step_projection2),
        *zip(theirs.spectrogram_upsampler.children(), [m for m in model.upsample[0].modules() if hasattr(m, "stride")]),
    ]  # fmt: skip
    for a, b in pairs:
        a.weight.copy_(b.weight), a.bias.copy_(b.bias)
    for i, (block, layer) in enumerate(zip(theirs.residual_layers, model.stack.layers)):
        rows = slice(i * R, (i + 1) * R)
        block.diffusion_projection.weight.copy_(model.step_biases.weight[rows])
        block.diffusion_projection.bias.copy_(model.step_biases.bias[rows])
        block.dilated_conv.weight.copy_(swapped(layer.conv.weight)), block.dilated_conv.bias.copy_(swapped(layer.conv.bias))
        block.conditioner_projection.weight.copy_(swapped(layer.cond.weight)), block.conditioner_projection.bias.zero_()
        # The sum of skips is divided by √L there, and by W_out here
        for p, ours in ((block.output_projection.weight, layer.out.weight), (block.output_projection.bias, layer.out.bias)):
            p.copy_(torch.cat([ours[:R], ours[R:] * root]))
    steps = model.schedule_steps(schedule)

    @torch.inference_mode()
    def run():
        x, done = noise[0].clone(), 0
        for n in range(len(steps) - 1, -1, -1):
            t = torch.tensor([float(steps.t[n])])
            x = float(steps.c1[n]) * (x - float(steps.c2[n]) * theirs(x, spectrogram=mel, diffusion_step=t).squeeze(1))
            if n > 0:
                x = x + float(steps.sigma[n]) * noise[1][done]
            x, done = x.clamp(-1.0, 1.0), done + 1
        return x

    return run
