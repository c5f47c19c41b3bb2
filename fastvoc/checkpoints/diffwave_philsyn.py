"""philsyn/DiffWave-Vocoder: <iteration>.pkl, a torch.save file, with the config.json it was trained with beside it, or
upstream's config_<channels>.json up to four folders above, where its repository has them.

    {'model_state_dict', 'optimizer_state_dict'}; weight norm on all but the fc layers and the last convolution

Tanh comes first, as here; res_conv and skip_conv are apart; the step's bias stays in the residual path (it is added in
place); every layer has an upsampler of its own; the skips are multiplied by √(1/layers).
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.diffwave_lmnt import count, upsampler_values
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.checkpoints.rewriting import rewritten
from fastvoc.checkpoints.weight_norm import fold_weight_norm, strip_prefix
from fastvoc.errors import ConfigError, IncompatibleCheckpointError
from fastvoc.models.diffwave import DiffWave, DiffWaveConfig
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import load_weights, read_json

LAYOUT = "philsyn/DiffWave-Vocoder (<iteration>.pkl and config.json)"
BLOCKS = "residual_layer.residual_blocks."


def matches(contents, path) -> bool:
    keys = _weights(contents)
    return any(key.startswith(BLOCKS + "0.dilated_conv_layer.") for key in keys)


def read(contents, path, config=None) -> DiffWave:
    """config: the JSON file with diffusion_config, wavenet_config and trainset_config, where it does not lie beside."""
    state = fold_weight_norm(float_tensors(_weights(contents), path))
    source = Path(config) if config is not None else _configuration(state, path)
    return from_state(state, read_json(source), path, source)


def _configuration(state: dict[str, Tensor], path) -> Path:
    """The file with the hyper-parameters, found by its name and, above the folder, by its number of channels."""
    beside = [path.with_suffix(".json"), path.parent / "config.json"]
    for place in beside:
        if place.is_file():
            return place
    channels = len(state.get("init_conv.0.conv.bias", ()))
    for folder in path.absolute().parents[1:5]:
        for place in sorted(folder.glob("config_*.json")):
            network = read_json(place).get("wavenet_config")
            if isinstance(network, dict) and network.get("res_channels") == channels:
                return place
    raise ConfigError(
        f"{path}: the weights do not tell the noise schedule and the dilations, and there is no {beside[-1]}.",
        hint="Put the config_*.json that it was trained with there as config.json, or pass config=PATH "
        "(on the command line --reader config=PATH).",
    )


def from_state(state: dict[str, Tensor], values: dict, path, source) -> DiffWave:
    """state: the folded weights; values: upstream's JSON configuration. path, source: what errors call the two."""
    model = DiffWave(config_of(state, values, path, source))
    load_weights(model, rewritten(_rewrite, state, path), path)
    if model.n_mels:
        number = lambda name, default: _number(values.get("trainset_config") or {}, name, source, default)
        hop = number("hop_length", model.hop_length)
        if hop != model.hop_length:
            raise IncompatibleCheckpointError(f"{path} upsamples by {model.hop_length}, {source} has hop_length {hop!r}")
        mel = MelConfig.preset(
            "tacotron", sample_rate=number("sampling_rate", 22050), n_fft=number("filter_length", 1024), hop_length=hop,
            win_length=number("win_length", 1024), n_mels=model.n_mels, fmin=number("mel_fmin", 0.0),
            fmax=number("mel_fmax", 8000.0),
        )  # fmt: skip
        model.preprocessing = Preprocessing(mel)
    return model.eval()


def config_of(state: dict[str, Tensor], values: dict, path, source) -> DiffWaveConfig:
    """Sizes from the weights; the schedule and the dilations from upstream's JSON configuration."""
    network, diffusion = (values.get(name) or {} for name in ("wavenet_config", "diffusion_config"))
    if not isinstance(network, dict) or not isinstance(diffusion, dict):
        raise ConfigError(f"{source}: wavenet_config and diffusion_config must be objects")
    layers = count(state, BLOCKS)
    try:
        first, conv = state["init_conv.0.conv.weight"], state[BLOCKS + "0.dilated_conv_layer.conv.weight"]
        step1, step2 = (state[f"residual_layer.fc_t{i}.weight"] for i in (1, 2))
        mel = state.get(BLOCKS + "0.mel_conv.conv.weight")
        kernels = [] if mel is None else [state[f"{BLOCKS}0.upsample_conv2d.{i}.weight"] for i in upsamplers(state)]
        if first.shape[1] != 1 or state["final_conv.2.conv.weight"].shape[0] != 1:
            raise IncompatibleCheckpointError(f"{path} has {first.shape[1]} input channels; only mono is supported")
        sizes = {
            "n_mels": 0 if mel is None else mel.shape[1],
            "residual_channels": first.shape[0],
            "gate_channels": conv.shape[0],
            "skip_channels": state[BLOCKS + "0.skip_conv.weight"].shape[0],
            "layers": layers,
            "kernel_size": conv.shape[2],
            "step_channels": step1.shape[1],
            "step_hidden_channels": step1.shape[0],
            "step_out_channels": step2.shape[0],
            **upsampler_values(kernels, path),
        }
    except (KeyError, IndexError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a weight is missing or has a wrong rank: {fault}") from None
    pairs = {"res_channels": "residual_channels", "skip_channels": "skip_channels", "num_res_layers": "layers"}
    for theirs, ours in pairs.items():
        if network.get(theirs, sizes[ours]) != sizes[ours]:
            said = f"{sizes[ours]} in the weights, {network[theirs]!r} in {source}"
            raise IncompatibleCheckpointError(f"{path}: {theirs} is {said}")
    T = _number(diffusion, "T", source)
    if not isinstance(T, int) or not 1 <= T <= 65536:
        raise ConfigError(f"{source}: T must be an integer in 1…65536, got {T!r}")
    beta_0, beta_T = (_number(diffusion, name, source) for name in ("beta_0", "beta_T"))
    return DiffWaveConfig(
        **sizes,
        dilation_cycle=_number(network, "dilation_cycle", source),
        shared_upsampler=False,
        step_embedding="decreasing",
        step_in_residual=True,
        clamp=False,
        noise_schedule=torch.linspace(beta_0, beta_T, T, dtype=torch.float32).tolist(),
        float32_schedule=True,
    )


def canonical(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """philsyn's parameters, with weight norm or without -> DiffWave's. Differentiable."""
    return _rewrite(fold_weight_norm(state))


def _rewrite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = range(count(state, BLOCKS))
    each = lambda i, name: state[f"{BLOCKS}{i}.{name}"]
    out = {}
    for part in ("weight", "bias"):
        out[f"input_projection.{part}"] = state[f"init_conv.0.conv.{part}"]
        out[f"skip_projection.{part}"] = state[f"final_conv.0.conv.{part}"]
        out[f"output_projection.{part}"] = state[f"final_conv.2.conv.{part}"]
        for i in (1, 2):
            out[f"step_projection{i}.{part}"] = state[f"residual_layer.fc_t{i}.{part}"]
        out[f"step_biases.{part}"] = torch.cat([each(i, f"fc_t.{part}") for i in layers])
    out["skip_projection.weight"] = out["skip_projection.weight"] * math.sqrt(1 / len(layers))
    has_mel = BLOCKS + "0.mel_conv.conv.weight" in state
    for i in layers:
        to = f"stack.layers.{i}"
        out[f"{to}.conv.weight"] = each(i, "dilated_conv_layer.conv.weight")
        out[f"{to}.conv.bias"] = each(i, "dilated_conv_layer.conv.bias")
        if has_mel:
            out[f"{to}.conv.bias"] = out[f"{to}.conv.bias"] + each(i, "mel_conv.conv.bias")
            out[f"{to}.cond.weight"] = each(i, "mel_conv.conv.weight")
            for number in upsamplers(state):
                for part in ("weight", "bias"):
                    out[f"upsample.{i}.up_layers.{2 * number}.{part}"] = each(i, f"upsample_conv2d.{number}.{part}")
        for part in ("weight", "bias"):
            out[f"{to}.out.{part}"] = torch.cat([each(i, f"res_conv.{part}"), each(i, f"skip_conv.{part}")])
    return out


def upsamplers(state: dict) -> range:
    return range(count(state, BLOCKS + "0.upsample_conv2d."))


def _number(values: dict, name: str, source, default=None):
    value = values.get(name, default) if isinstance(values, dict) else default
    if type(value) not in (int, float):
        raise ConfigError(f"{source}: {name} must be a number, got {value!r}")
    return value


def _weights(contents) -> dict:
    state = contents.get("model_state_dict", contents) if isinstance(contents, dict) else {}
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    return strip_prefix(state, "module.") if named else {}
