"""WaveGlow: NVIDIA/waveglow's pickled module objects, DeepLearningExamples' dictionaries, and state_dicts of either.

    NVIDIA                 {'model': a pickled glow.WaveGlow or glow_old.WaveGlow, 'iteration', …}
    DeepLearningExamples   {'state_dict': names with `module.` and `module.1.` in them, 'config': {…}, …}

The networks WN.{k} were written in three ways, each with weight norm or without:

    until 2018-11-13       res_layers.{i} (one less), skip_layers.{i}, cond_layers.{i}
    until 2019-08, DLE     res_skip_layers.{i}, cond_layers.{i}; for one day also unused skip_layers.{i}
    since                  res_skip_layers.{i}, cond_layer with the rows of all layers

Which half of the channels moves which does not show in them: glow_old.WaveGlow alternates, all others never did, and only
the name of the pickled class tells. So a state_dict alone needs coupling="standard" or "alternating".
"""

import logging

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.checkpoints.rewriting import rewritten
from fastvoc.checkpoints.unpickle import PickledModule
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import CheckpointError, ConfigError, IncompatibleCheckpointError
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import load_weights
from fastvoc.models.waveglow import WaveGlow, WaveGlowConfig
from fastvoc.ops.invertible_conv1x1 import inverse

LAYOUT = "WaveGlow of NVIDIA/waveglow (a pickled module) or DeepLearningExamples, or its state_dict"
COUPLINGS = ("standard", "alternating")
HOP = 256  # upstream's only one; a fork with another has it in its pickled upsampler

logger = logging.getLogger("fastvoc")


def matches(contents, path) -> bool:
    keys = _weights(contents)[0]
    return "convinv.0.conv.weight" in keys and any(key.startswith("WN.0.start.") for key in keys)


def read(contents, path, coupling: str | None = None, hop_length: int | None = None) -> WaveGlow:
    """coupling    "standard" or "alternating", which a state_dict does not tell and a pickled class's name does
    hop_length  where it is not 256 and the file is no pickled module
    """
    if coupling not in (None, *COUPLINGS):
        raise ConfigError(f"coupling: got {coupling!r}, expected one of {list(COUPLINGS)}")
    state, said, module = _weights(contents)
    state = fold_weight_norm(float_tensors(state, path))
    if coupling is None:
        coupling = _coupling(contents, module, path)
    config = config_of(state, said, hop_length or _stride(module) or HOP, coupling == "alternating", path)
    model = WaveGlow(config)
    load_weights(model, rewritten(rewrite, state, path), path)
    for k, flow in enumerate(model.flows):
        try:
            inverse(flow.convinv.conv.weight.detach()[:, :, 0])
        except ConfigError as fault:
            raise CheckpointError(f"{path}: convinv.{k}: {fault.message}", hint=fault.hint) from None
    if config.upsample_stride == HOP:
        model.preprocessing = Preprocessing(MelConfig.preset("tacotron", n_mels=config.n_mel_channels))
    else:
        logger.warning("%s: the hop is %d; the recording convention is known for %d", path, config.upsample_stride, HOP)
    return model.eval()


def canonical(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's parameters, of any of the layouts, with weight norm or without -> WaveGlow's. Differentiable."""
    return rewrite(fold_weight_norm({name: w for name, w in state.items() if not is_unused(name, state)}))


def config_of(state: dict[str, Tensor], said: dict, hop: int, alternating: bool, path) -> WaveGlowConfig:
    """Sizes from the folded weights. said: what the file says beside them; it must be the same."""
    try:
        channels = [state[f"convinv.{k}.conv.weight"].shape[0] for k in range(_count(state, "convinv."))]
        drops = [k for k in range(1, len(channels)) if channels[k] != channels[k - 1]]
        start, first = state["WN.0.start.weight"], state["WN.0.in_layers.0.weight"]
        found = {
            "n_mel_channels": state["upsample.weight"].shape[0],
            "n_flows": len(channels),
            "n_group": channels[0],
            "n_layers": _count(state, "WN.0.in_layers."),
            "n_channels": start.shape[0],
            "kernel_size": first.shape[2],
        }
        if drops:
            found |= {"n_early_every": drops[0], "n_early_size": channels[drops[0] - 1] - channels[drops[0]]}
        kernel = state["upsample.weight"].shape[2]
    except (KeyError, IndexError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a weight is missing or has a wrong rank: {fault}") from None
    for name, value in found.items():
        if name in said and said[name] != value:
            raise IncompatibleCheckpointError(f"{path}: {name} is {value} in the weights, {said[name]!r} beside them")
    if not drops:  # then no early output is within the flows that there are, or they are empty
        every, size = said.get("n_early_every", 0), said.get("n_early_size", 2)
        found |= {"n_early_every": every if size == 0 and every else max(every, len(channels)), "n_early_size": size}
    config = WaveGlowConfig(**found, upsample_kernel=kernel, upsample_stride=hop, alternating=alternating)
    if config.channels != channels:
        raise IncompatibleCheckpointError(f"{path}: the flows have {channels} channels, expected {config.channels}")
    return config


def rewrite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {f"upsample.{part}": state[f"upsample.{part}"] for part in ("weight", "bias")}
    for k in range(_count(state, "convinv.")):
        out[f"flows.{k}.convinv.conv.weight"] = state[f"convinv.{k}.conv.weight"]
        to, layers = f"flows.{k}.coupling.net", range(_count(state, f"WN.{k}.in_layers."))
        get = lambda name, k=k: state[f"WN.{k}.{name}"]
        for part in ("weight", "bias"):
            out[f"{to}.start.{part}"], out[f"{to}.end.{part}"] = get(f"start.{part}"), get(f"end.{part}")
        fused = {part: _fused(state, k, part, layers) for part in ("weight", "bias")}
        for i in layers:
            layer = f"{to}.stack.layers.{i}"
            out[f"{layer}.conv.weight"] = get(f"in_layers.{i}.weight")
            out[f"{layer}.conv.bias"] = get(f"in_layers.{i}.bias") + fused["bias"][i]
            out[f"{layer}.cond.weight"] = fused["weight"][i]
            for part in ("weight", "bias"):
                out[f"{layer}.out.{part}"] = _res_skip(state, k, i, part, i == layers[-1])
    return out


def _fused(state: dict[str, Tensor], k: int, part: str, layers: range):
    """The conditioning's weights or biases, layer by layer."""
    if f"WN.{k}.cond_layers.0.weight" in state:
        return [state[f"WN.{k}.cond_layers.{i}.{part}"] for i in layers]
    return state[f"WN.{k}.cond_layer.{part}"].chunk(len(layers))


def _res_skip(state: dict[str, Tensor], k: int, i: int, part: str, is_last: bool) -> Tensor:
    if f"WN.{k}.skip_layers.0.weight" not in state:
        rows = state[f"WN.{k}.res_skip_layers.{i}.{part}"]
        return torch.cat([torch.zeros_like(rows), rows]) if is_last else rows
    skip = state[f"WN.{k}.skip_layers.{i}.{part}"]
    return torch.cat([torch.zeros_like(skip) if is_last else state[f"WN.{k}.res_layers.{i}.{part}"], skip])


def _count(state, prefix: str) -> int:
    """Layers, flows …: the largest number behind the prefix, and one."""
    numbers = [key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def is_unused(name: str, state) -> bool:
    """What upstream's files hold and its networks do not use."""
    flow, layers, _ = name.partition(".skip_layers.")
    joined = bool(layers) and any(key.startswith(flow + ".res_skip_layers.") for key in state)
    return joined or name.endswith(".W_inverse")


def unused(contents) -> list[str]:
    plain = _parts(contents)[0]
    return [name for name in plain if is_unused(name, plain)]


def _weights(contents) -> tuple[dict, dict, PickledModule | None]:
    """(state_dict with upstream's plain names, numbers beside it, the pickled module)"""
    plain, said, module = _parts(contents)
    return {name: value for name, value in plain.items() if not is_unused(name, plain)}, said, module


def _parts(contents) -> tuple[dict, dict, PickledModule | None]:
    """The same with what upstream's networks do not use."""
    module = contents.get("model") if isinstance(contents, dict) else contents
    said = {}
    if isinstance(module, PickledModule):
        state, said = module.state_dict(), module.attributes
    else:
        module, state = None, contents if isinstance(contents, dict) else {}
        for name in ("state_dict", "model"):
            if isinstance(state.get(name), dict):
                state = state[name]
        if isinstance(contents, dict) and isinstance(contents.get("config"), dict):
            network = contents["config"].get("WN_config")
            said = {**contents["config"], **(network if isinstance(network, dict) else {})}
    if not all(isinstance(key, str) for key in state):
        return {}, {}, None
    plain = {key.replace("module.1.", "").replace("module.", ""): value for key, value in state.items()}
    said = {name: value for name, value in said.items() if type(value) is int}
    return plain, said, module


def _coupling(contents, module: PickledModule | None, path) -> str:
    if module is not None:
        return "alternating" if "glow_old" in module.class_name.split(".") else "standard"
    if isinstance(contents, dict) and isinstance(contents.get("config"), dict) and "WN_config" in contents["config"]:
        return "standard"  # DeepLearningExamples' code has no other
    raise ConfigError(
        f"{path} holds WaveGlow's weights alone, which do not tell the order of its couplings.",
        hint='Pass coupling="alternating" if it was trained or published as glow_old.WaveGlow, else coupling="standard" '
        "(on the command line --reader coupling=…).",
    )


def _stride(module: PickledModule | None) -> int | None:
    modules = {} if module is None else module.attributes.get("_modules")
    upsample = modules.get("upsample") if isinstance(modules, dict) else None
    stride = upsample.attributes.get("stride") if isinstance(upsample, PickledModule) else None
    return stride[0] if isinstance(stride, tuple) and len(stride) == 1 and type(stride[0]) is int else None
