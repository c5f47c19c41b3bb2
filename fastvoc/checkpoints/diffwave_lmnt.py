"""lmnt-com/diffwave: weights-*.pt, as its trainer saves it.

    {'step', 'model' (the state_dict), 'optimizer', 'params', 'scaler'}

The layer's sigmoid half comes first, the conditioning's 1×1 has a bias, and the skips are divided by √layers. The
hyper-parameters are those stored with the weights; upstream's predict() takes the defaults of its source code instead.
Files from before 2020-09-23 are of another network: no scaling by 1/√2 and 1/√layers.
"""

import math

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.checkpoints.rewriting import rewritten
from fastvoc.checkpoints.weight_norm import fold_weight_norm, strip_prefix
from fastvoc.errors import IncompatibleCheckpointError
from fastvoc.models.diffwave import DiffWave, DiffWaveConfig
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import load_weights

LAYOUT = "lmnt-com/diffwave (weights-*.pt)"


def matches(contents, path) -> bool:
    keys = _weights(contents)
    return "residual_layers.0.diffusion_projection.weight" in keys and "input_projection.weight" in keys


def read(contents, path) -> DiffWave:
    state = fold_weight_norm(float_tensors(_weights(contents), path))
    params = contents.get("params")
    if not isinstance(params, dict):
        raise IncompatibleCheckpointError(
            f"{path} lacks 'params', the hyper-parameters: its weights alone do not tell the noise schedule.",
            hint="Load the file that lmnt's trainer wrote, or put its params into the dictionary.",
        )
    return from_state(state, params, path)


def from_state(state: dict[str, Tensor], params: dict, path) -> DiffWave:
    """state: the folded weights; params: lmnt's hyper-parameters. path: what errors call them."""
    config = config_of(state, params, path)
    model = DiffWave(config)
    load_weights(model, rewritten(_rewrite, state, path), path)
    if config.n_mels:
        hop = model.hop_length
        mel = MelConfig.preset(
            "lmnt", sample_rate=params.get("sample_rate", 22050), n_fft=params.get("n_fft", 1024),
            hop_length=hop, win_length=4 * hop, n_mels=config.n_mels,
        )  # fmt: skip
        model.preprocessing = Preprocessing(mel)
    return model.eval()


def config_of(state: dict[str, Tensor], params: dict, path) -> DiffWaveConfig:
    """Sizes from the weights; what shapes cannot tell from params."""
    layers = count(state, "residual_layers.")
    try:
        first, conv = (state[f"{name}.weight"] for name in ("input_projection", "residual_layers.0.dilated_conv"))
        step1, step2 = (state[f"diffusion_embedding.projection{i}.weight"] for i in (1, 2))
        if step1.dim() == 3:
            raise IncompatibleCheckpointError(
                f"{path} was written by lmnt's DiffWave before 2020-09-23 (commit f04e2a2): that network did not scale its "
                "residuals and skips, and is not supported.",
                hint="Train it anew, or load a newer file.",
            )
        mel = state.get("residual_layers.0.conditioner_projection.weight")
        up = [state[key] for key in upsampler_keys(state)] if mel is not None else []
        values = {
            "n_mels": 0 if mel is None else mel.shape[1],
            "residual_channels": first.shape[0],
            "gate_channels": conv.shape[0],
            "skip_channels": state["residual_layers.0.output_projection.weight"].shape[0] - first.shape[0],
            "layers": layers,
            "kernel_size": conv.shape[2],
            "step_channels": step1.shape[1],
            "step_hidden_channels": step1.shape[0],
            "step_out_channels": step2.shape[0],
            **upsampler_values(up, path),
        }
    except (KeyError, IndexError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a weight is missing or has a wrong rank: {fault}") from None
    for name in ("noise_schedule", "dilation_cycle_length"):
        if params.get(name) is None:
            raise IncompatibleCheckpointError(f"{path}: params lacks {name}, which the weights do not tell")
    said = {
        "residual_layers": layers, "residual_channels": values["residual_channels"], "n_mels": values["n_mels"] or None,
        "hop_samples": math.prod(values.get("upsample_scales", [])) if up else None,
    }  # fmt: skip
    for name, have in said.items():
        if have is not None and params.get(name, have) != have:
            raise IncompatibleCheckpointError(f"{path}: {name} is {have} in the weights, {params[name]!r} in its params")
    return DiffWaveConfig(
        **values,
        dilation_cycle=params["dilation_cycle_length"],
        noise_schedule=params["noise_schedule"],
        fast_schedule=params.get("inference_noise_schedule"),
        audio_len=None if values["n_mels"] else params.get("audio_len"),
    )


def canonical(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """lmnt's parameters, weight norm or none -> DiffWave's. Differentiable."""
    return _rewrite(fold_weight_norm(state))


def _rewrite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = range(count(state, "residual_layers."))
    each = lambda i, name: state[f"residual_layers.{i}.{name}"]
    out = {}
    for name in ("input_projection", "skip_projection", "output_projection"):
        out |= {f"{name}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
    out["skip_projection.weight"] = out["skip_projection.weight"] / math.sqrt(len(layers))
    for part in ("weight", "bias"):
        for i in (1, 2):
            out[f"step_projection{i}.{part}"] = state[f"diffusion_embedding.projection{i}.{part}"]
        out[f"step_biases.{part}"] = torch.cat([each(i, f"diffusion_projection.{part}") for i in layers])
    for number, key in enumerate(upsampler_keys(state)):
        for part in ("weight", "bias"):
            out[f"upsample.0.up_layers.{2 * number}.{part}"] = state[key.removesuffix("weight") + part]
    for i in layers:
        to = f"stack.layers.{i}"
        bias = each(i, "dilated_conv.bias")
        if f"residual_layers.{i}.conditioner_projection.weight" in state:
            out[f"{to}.cond.weight"] = _tanh_first(each(i, "conditioner_projection.weight"))
            bias = bias + each(i, "conditioner_projection.bias")
        out[f"{to}.conv.weight"], out[f"{to}.conv.bias"] = _tanh_first(each(i, "dilated_conv.weight")), _tanh_first(bias)
        out |= {f"{to}.out.{part}": each(i, f"output_projection.{part}") for part in ("weight", "bias")}
    return out


def _tanh_first(rows: Tensor) -> Tensor:
    sigmoid, tanh = rows.chunk(2)
    return torch.cat([tanh, sigmoid])


def count(state: dict, prefix: str) -> int:
    """How many numbered modules lie under a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def upsampler_keys(state: dict) -> list[str]:
    keys = [key for key in state if key.startswith("spectrogram_upsampler.conv") and key.endswith(".weight")]
    return sorted(keys, key=lambda key: int(key.split(".")[1].removeprefix("conv")))


def upsampler_values(kernels: list[Tensor], path) -> dict:
    """Constructor arguments from ConvTranspose2d weights (1, 1, freq, 2·scale)."""
    if not kernels:
        return {}
    shapes = [tuple(w.shape) for w in kernels]
    fits = all(len(s) == 4 and s[:2] == (1, 1) and s[2] == shapes[0][2] and s[2] % 2 and s[3] % 2 == 0 for s in shapes)
    if not fits:
        raise IncompatibleCheckpointError(f"{path}: the upsampler's weights are {shapes}, expected (1, 1, odd, 2·scale) each")
    return {"upsample_scales": [s[3] // 2 for s in shapes], "upsample_freq_kernel": shapes[0][2]}


def _weights(contents) -> dict:
    state = contents.get("model", contents) if isinstance(contents, dict) else {}
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    return strip_prefix(state, "module.") if named else {}
