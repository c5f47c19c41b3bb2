"""kan-bayashi/ParallelWaveGAN: checkpoint-*steps.pkl, with config.yml and stats.h5 or stats.npy beside it.

    {'model': {'generator': state_dict, 'discriminator': state_dict}, 'optimizer', 'scheduler', 'steps', 'epochs'},
    or the generator's state_dict alone; weight norm in any spelling

config.yml says what the networks are and how the mels were made. Of its many generator types this reads
ParallelWaveGANGenerator, the default. The statistics may also be buffers `mean` and `scale` of the state_dict.

    upstream                                    here
    conv_layers.i.conv, .conv1x1_aux            stack.layers.i.conv, .cond
    conv_layers.i.conv1x1_out, .conv1x1_skip    stack.layers.i.out, the skip rows times √(1/L)
"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors, read_file
from fastvoc.checkpoints.statistics import read_statistics
from fastvoc.checkpoints.weight_norm import fold_weight_norm, respell_weight_norm, strip_prefix
from fastvoc.checkpoints.yaml_config import read_yaml
from fastvoc.errors import CheckpointError, ConfigError, IncompatibleCheckpointError
from fastvoc.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastvoc.models.parallel_wavegan_discriminator import DISCRIMINATORS
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import check_names, config_from_dict, load_weights

LAYOUT = "kan-bayashi/ParallelWaveGAN (checkpoint-*steps.pkl, config.yml and stats.h5)"
GENERATOR = "ParallelWaveGANGenerator"
LOGS = {10.0: "log10", 2.0: "log2", None: "ln"}

logger = logging.getLogger("fastvoc")


def matches(contents, path) -> bool:
    model = contents.get("model") if isinstance(contents, dict) else None
    if isinstance(model, dict) and isinstance(model.get("generator"), dict):
        return True  # whatever the generator: `read` says which ones are supported
    keys = _weights(contents, "generator")
    return any(key.startswith("conv_layers.0.conv1x1_aux.") for key in keys)


def read(contents, path, config=None, stats=None) -> ParallelWaveGAN:
    """config, stats: paths, where they do not lie beside the checkpoint under their usual names."""
    settings, source = read_config(path, config)
    kind = settings.get("generator_type", GENERATOR)
    if kind != GENERATOR:
        raise ConfigError(f"{path}: unsupported generator_type {kind!r} in {source.name}; supported: {GENERATOR}")
    params = settings.get("generator_params")
    if not isinstance(params, dict):
        raise ConfigError(f"{source}: generator_params must be a mapping, got {params!r}")
    model = ParallelWaveGAN(generator_config(params, source))

    state = fold_weight_norm(float_tensors(_weights(contents, "generator"), path))
    given = state.pop("mean", None), state.pop("scale", None)
    _check_weights(state, upstream_weights(model), path, source)
    given = _statistics(given, model.n_mels, path, stats)
    load_weights(model, {**canonical(state, model.config), **given}, path)
    model.preprocessing = preprocessing(settings, model, source)
    return model.eval()


def unused(contents) -> list[str]:
    """The discriminator, which `read_discriminator` reads."""
    model = contents.get("model")
    return [f"model.{name}" for name in model if name != "generator"] if isinstance(model, dict) else []


def read_discriminator(path, config=None) -> torch.nn.Module:
    """The discriminator of a checkpoint, to train on with: its weight norm is in place, its parameters as they were."""
    path = Path(path)
    settings, source = read_config(path, config)
    kind = settings.get("discriminator_type", "ParallelWaveGANDiscriminator")
    if kind not in DISCRIMINATORS:
        raise ConfigError(f"{path}: unsupported discriminator_type {kind!r}; supported: {sorted(DISCRIMINATORS)}")
    params = settings.get("discriminator_params", {})
    try:
        model = DISCRIMINATORS[kind](**params)
    except TypeError as fault:
        raise ConfigError(f"{source}: discriminator_params do not fit {kind}: {fault}") from None
    state = _weights(read_file(path), "discriminator")
    if not state:
        raise IncompatibleCheckpointError(f"{path} holds no discriminator")
    load_weights(model, respell_weight_norm(float_tensors(state, path), model.state_dict()), path)
    return model


def canonical(state: dict[str, Tensor], config: ParallelWaveGANConfig) -> dict[str, Tensor]:
    """Upstream's generator weights, weight norm in any spelling, to ours. Differentiable; the statistics pass through."""
    state = fold_weight_norm(state)
    rest = {key: value for key, value in state.items() if not key.startswith("conv_layers.")}
    skip_scale = math.sqrt(1 / config.layers)
    for i in range(config.layers):
        conv, out, skip = (f"conv_layers.{i}.{name}" for name in ("conv", "conv1x1_out", "conv1x1_skip"))
        weight = state[f"{conv}.weight"]
        bias = lambda name: state.get(f"{name}.bias", weight.new_zeros(len(state[f"{name}.weight"])))  # noqa: B023
        ours = f"stack.layers.{i}"
        rest[f"{ours}.conv.weight"], rest[f"{ours}.conv.bias"] = weight, bias(conv)
        if f"conv_layers.{i}.conv1x1_aux.weight" in state:
            rest[f"{ours}.cond.weight"] = state[f"conv_layers.{i}.conv1x1_aux.weight"]
        rest[f"{ours}.out.weight"] = torch.cat([state[f"{out}.weight"], state[f"{skip}.weight"] * skip_scale])
        rest[f"{ours}.out.bias"] = torch.cat([bias(out), bias(skip) * skip_scale])
    return rest


def generator_config(params: dict, source) -> ParallelWaveGANConfig:
    values = {key.replace("upsample_kernal_sizes", "upsample_kernel_sizes"): v for key, v in params.items()}
    values.pop("use_weight_norm", None)  # the file tells
    return config_from_dict(ParallelWaveGANConfig, values, f"{source}, generator_params")


def upstream_weights(model: ParallelWaveGAN) -> dict[str, tuple[int, ...]]:
    """Names and shapes, weight norm folded, of the generator with this model's configuration."""
    c = model.config
    shapes = {}

    def conv(name, n_out, n_in, kernel=1, bias=True):
        shapes[f"{name}.weight"] = n_out, n_in, kernel
        if bias:
            shapes[f"{name}.bias"] = (n_out,)

    conv("first_conv", c.residual_channels, c.in_channels)
    conv("last_conv_layers.1", c.skip_channels, c.skip_channels)
    conv("last_conv_layers.3", c.out_channels, c.skip_channels)
    for i in range(c.layers):
        conv(f"conv_layers.{i}.conv", c.gate_channels, c.residual_channels, c.kernel_size, c.bias)
        if model.n_mels:
            conv(f"conv_layers.{i}.conv1x1_aux", c.gate_channels, c.aux_channels, bias=False)
        conv(f"conv_layers.{i}.conv1x1_out", c.residual_channels, c.gate_channels // 2, bias=c.bias)
        conv(f"conv_layers.{i}.conv1x1_skip", c.skip_channels, c.gate_channels // 2, bias=c.bias)
    if model.upsample_net is not None:
        shapes |= {f"upsample_net.{k}": tuple(v.shape) for k, v in model.upsample_net.state_dict().items()}
    return shapes


def preprocessing(settings: dict, model: ParallelWaveGAN, source) -> Preprocessing | None:
    """The recording convention of config.yml, without statistics: the model has them. None where it is unknown here."""
    if not model.n_mels:
        return None
    other = [f"{key} {settings[key]!r}" for key, value in (("window", "hann"),) if settings.get(key, value) != value]
    other += [f"num_mels {settings.get('num_mels')!r}"] if settings.get("num_mels") != model.n_mels else []
    other += [f"log_base {settings['log_base']!r}"] if settings.get("log_base", 10.0) not in LOGS else []
    if other:
        logger.warning("%s: %s: the model's mels must come from elsewhere", source, ", ".join(other))
        return None
    missing = [key for key in ("sampling_rate", "hop_size", "fft_size") if key not in settings]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}")
    if model.upsample_net is not None and settings["hop_size"] != model.hop_length:
        raise ConfigError(f"{source}: hop_size is {settings['hop_size']}, upsample_scales make {model.hop_length}")
    mel = MelConfig.preset(
        "parallel_wavegan", sample_rate=settings["sampling_rate"], n_fft=settings["fft_size"],
        hop_length=settings["hop_size"], win_length=settings.get("win_length") or settings["fft_size"],
        n_mels=settings["num_mels"], fmin=settings.get("fmin") or 0, fmax=settings.get("fmax"),
        log=LOGS[settings.get("log_base", 10.0)],
    )  # fmt: skip
    return Preprocessing(mel, gain=float(settings.get("global_gain_scale") or 1.0))


def read_config(path: Path, config=None) -> tuple[dict, Path]:
    """config.yml, and where it is."""
    names = [Path(config)] if config else [path.parent / "config.yml", path.parent / "config.yaml"]
    source = next((name for name in names if name.is_file()), None)
    if source is None:
        raise ConfigError(
            f"{path}: no config.yml beside it; the weights do not tell how many stacks the layers form.",
            hint=f"Put the config.yml that it was trained with into {path.parent}, or pass config=PATH "
            "(on the command line --reader config=PATH).",
        )
    return read_yaml(source), source


def _weights(contents, part: str) -> dict:
    if not isinstance(contents, dict):
        return {}
    model = contents.get("model")
    state = model.get(part, {}) if isinstance(model, dict) else contents if part == "generator" else {}
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    return strip_prefix(state, "module.") if named else {}


def _check_weights(state: dict, expected: dict, path, source) -> None:
    """Raise where the weights are not those of config.yml, in upstream's names."""
    check_names(state, expected, path, source.name)
    for name, shape in expected.items():
        if tuple(state[name].shape) != tuple(shape):
            raise IncompatibleCheckpointError(
                f"{path}: {name} is {tuple(state[name].shape)}, {source.name} makes it {tuple(shape)}"
            )


def _statistics(given: tuple, n_mels: int, path: Path, stats) -> dict[str, Tensor]:
    """The model's buffers mean and scale: from the weights, or from the file beside them."""
    if stats is None and None not in given:
        mean, scale = (value.reshape(-1) for value in given)
    else:
        names = [Path(stats)] if stats else [path.parent / "stats.h5", path.parent / "stats.npy"]
        source = next((name for name in names if name.is_file()), None)
        if source is None:
            if stats:
                raise FileNotFoundError(f"no such file: {stats}")
            logger.warning("%s: no stats.h5 or stats.npy beside it: give `infer` mels that are normalised already", path)
            return {"mean": torch.zeros(n_mels), "scale": torch.ones(n_mels)}
        mean, scale = (torch.as_tensor(value).float() for value in read_statistics(source, n_mels))
    if mean.shape != (n_mels,) or scale.shape != (n_mels,) or not (scale > 0).all():
        raise CheckpointError(
            f"{path}: statistics of {len(mean)} means and {len(scale)} scales; expected {n_mels} each, scales positive"
        )
    return {"mean": mean, "scale": scale}
