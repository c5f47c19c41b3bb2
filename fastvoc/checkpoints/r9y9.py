"""r9y9/wavenet_vocoder, of 2018 and of 2019 on: checkpoint_step*.pth with hparams.json beside it.

    {'state_dict', 'optimizer', 'global_step', …}, or the state_dict alone; weight norm in any spelling

Sizes are read from the weights; hparams.json adds what shapes cannot tell: stacks, the output distribution, the
upsampler's activation, and the recording convention. It is looked for as <name>.json and as hparams.json in the folder.
The mel statistics are taken from meanvar.npy or meanvar.joblib where one lies beside.

The layout of 2018: upsample_conv.{0, 2, …} with ReLU behind each, conditioning with bias, and skips that are halved on
the way, s ← (s + h)·√½, unless hparams.json says "legacy": false: then they are summed up as they are. That recursion
is a weighted sum, so it goes into the skip weights. Its mels are the preset r9y9_2018, its sound begins with their
lead-in, and the recordings were brought to a peak of 0.999.
"""

import logging

from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.checkpoints.statistics import read_statistics
from fastvoc.checkpoints.weight_norm import fold_weight_norm, strip_prefix
from fastvoc.errors import ConfigError, IncompatibleCheckpointError
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import config_from_dict, load_weights, read_json
from fastvoc.models.wavenet import WaveNet, WaveNetConfig

LAYOUT = "r9y9/wavenet_vocoder (checkpoint_step*.pth and hparams.json)"
PREEMPHASIS = 0.85  # upstream's constant; hparams.json only says whether
NOT_IN_SHAPES = ["stacks", "dropout", "output_distribution", "cin_pad"]
INPUT_TYPES = {"raw": True, "mulaw": True, "mulaw-quantize": False}  # -> scalar_input

logger = logging.getLogger("fastvoc")


def matches(contents, path) -> bool:
    keys = _weights(contents)
    has = lambda start: any(key.startswith(start) for key in keys)
    this = all(map(has, ("first_conv.", "conv_layers.0.conv.", "conv_layers.0.conv1x1_out.", "last_conv_layers.3.")))
    return this and not has("conv_layers.0.conv1x1_aux.")


def is_of_2018(state: dict, hparams: dict | None = None) -> bool:
    """Whether the code until 2019-08 made it. Without conditioning the weights do not show it; its hparams.json does."""
    if "weight_normalization" in (hparams or ()):
        return True
    return any(key.startswith("upsample_conv.") or key.endswith((".conv1x1c.bias", ".conv1x1g.bias")) for key in state)


def canonical(state_dict: dict[str, Tensor], recursive_skips: bool | None = None) -> dict[str, Tensor]:
    """r9y9's parameters, weight norm in place or not -> WaveNet's. Differentiable.

    recursive_skips: s ← (s + h)·√½ from layer to layer; default: as the layout of 2018 has it
    """
    state = fold_weight_norm(strip_prefix(state_dict, "module."))
    if recursive_skips is None:
        recursive_skips = is_of_2018(state)
    layers = _n_layers(state)
    if recursive_skips:
        for l in range(layers):
            scale = 0.5 ** ((layers - max(l, 1)) / 2)
            for name in ("weight", "bias"):
                key = f"conv_layers.{l}.conv1x1_skip.{name}"
                if key in state:
                    state[key] = state[key] * scale
    # The constructor of the time put its Sequential there
    return {key.replace("upsample_conv.", "upsample_net.up_layers.", 1): value for key, value in state.items()}


def _n_layers(state: dict) -> int:
    return sum(key.startswith("conv_layers.") and key.endswith(".conv.weight") for key in state)


def read(contents, path) -> WaveNet:
    weights = float_tensors(_weights(contents), path)
    names = [path.with_suffix(".json"), path.parent / (path.name + ".json"), path.parent / "hparams.json"]
    source = next((name for name in names if name.is_file()), None)
    hparams = {} if source is None else read_json(source)
    model = from_state(weights, hparams, path, source)
    model.preprocessing = preprocessing(hparams, model.config.cin_channels, path, is_of_2018(weights, hparams))
    if not path.stem.endswith("_ema") and path.with_stem(path.stem + "_ema").is_file():
        logger.info("%s has a twin with averaged weights (_ema), which usually sounds better", path)
    return model


def from_state(weights: dict[str, Tensor], hparams: dict, path, source) -> WaveNet:
    """weights: upstream's; hparams: what its JSON file says. path, source: what errors call the two."""
    of_2018 = is_of_2018(weights, hparams)
    recursive = hparams.get("legacy", of_2018) is True
    state = canonical(weights, recursive)
    found = shape_values(state, path)
    if recursive or "legacy" in hparams:  # with legacy false, the code of 2018-06 to 2019-08 scaled nothing
        found["skip_scale"] = 1.0
    if type(hparams.get("stacks")) is not int:
        sizes = ", ".join(f"{key}={value}" for key, value in found.items())
        raise ConfigError(
            f"{path}: the weights do not tell how many stacks its layers form ({sizes}).",
            hint="Put the hparams.json that it was trained with into its folder.",
        )
    _compare(found, hparams, path, source)
    values = {**found, **{key: hparams[key] for key in NOT_IN_SHAPES if hparams.get(key) is not None}}
    if found["upsample_conditional_features"]:
        said = {} if of_2018 else hparams.get("upsample_params") or {}
        values["upsample_params"] = {**said, **found["upsample_params"]}
    if of_2018 and not found["scalar_input"]:
        # Upstream's µ was the number of classes then: silence is class 128 of 256
        values["start"], values["mulaw_classes"] = float(found["out_channels"] // 2), found["out_channels"] + 1
    elif not found["scalar_input"]:
        # Upstream quantises by truncation: silence is class 127 of 256, not the nearest one, 128
        values["start"] = float((found["out_channels"] - 1) // 2)
    try:
        model = WaveNet(config_from_dict(WaveNetConfig, values, source))
    except TypeError as fault:
        raise ConfigError(f"{source}: upsample_params: {fault}") from None
    load_weights(model, state, path)
    return model.eval()


def shape_values(state: dict[str, Tensor], path) -> dict:
    """Constructor arguments that the weights' shapes determine."""
    try:
        names = "first_conv", "conv_layers.0.conv", "last_conv_layers.3"
        first, conv, last = (state[f"{name}.weight"] for name in names)
        mel, speaker = (state.get(f"conv_layers.0.{name}.weight") for name in ("conv1x1c", "conv1x1g"))
        values = {
            "out_channels": last.shape[0], "layers": _n_layers(state), "residual_channels": first.shape[0],
            "gate_channels": conv.shape[0], "skip_out_channels": state["conv_layers.0.conv1x1_skip.weight"].shape[0],
            "kernel_size": conv.shape[2], "cin_channels": -1 if mel is None else mel.shape[1],
            "gin_channels": -1 if speaker is None else speaker.shape[1], "scalar_input": first.shape[1] == 1,
            "conditioning_bias": is_of_2018(state), "use_speaker_embedding": "embed_speakers.weight" in state,
            "upsample_conditional_features": any(key.startswith("upsample_net.") for key in state),
        }
        if values["use_speaker_embedding"]:
            values["n_speakers"] = state["embed_speakers.weight"].shape[0]
        if values["upsample_conditional_features"]:
            conv_in = state.get("upsample_net.conv_in.weight")
            transposed = "upsample_net.up_layers.0.weight" in state  # of 2018; later, layer 0 is a stretch
            prefix = "upsample_net.up_layers." if conv_in is None else "upsample_net.upsample.up_layers."
            convs = [k for k, w in state.items() if k.startswith(prefix) and k.endswith(".weight") and w.dim() > 1]  # no PReLU
            kernels = [state[k].shape for k in sorted(convs, key=lambda k: int(k.split(".")[-2]))]
            values["upsample_net"] = "UpsampleNetwork" if conv_in is None else "ConvInUpsampleNetwork"
            values["upsample_params"] = {
                "upsample_scales": [(kernel[3] - 1) // 2 for kernel in kernels], "freq_axis_kernel_size": kernels[0][2]
            }
            if transposed:
                values["upsample_net"] = "ConvTranspose2dUpsampleNetwork"
                values["upsample_params"] = {
                    "upsample_scales": [kernel[3] for kernel in kernels], "freq_axis_kernel_size": kernels[0][2],
                    "kernel_factor": 1, "negative_slope": 0.0,
                }
            if conv_in is not None:
                values["cin_pad"] = (conv_in.shape[2] - 1) // 2
    except (KeyError, IndexError, ValueError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a weight is missing or has a wrong rank: {fault}") from None
    return values


def preprocessing(hparams: dict, cin_channels: int, path, of_2018: bool = False) -> Preprocessing | None:
    """The recording convention, or None where hparams name one that is not known here."""
    kind, before = hparams.get("input_type", "raw"), hparams.get("preprocess") or ""
    if kind == "mulaw" or before not in ("", "preemphasis"):
        logger.warning("%s: input_type %r, preprocess %r: what comes out is the model's own signal", path, kind, before)
        return None

    def number(name, default):
        value = hparams.get(name)
        if value is not None and type(value) not in (int, float):
            raise ConfigError(f"hparams.json beside {path}: {name} must be a number, got {value!r}")
        # Upstream writes "not given" as null or -1; a level in decibels is negative by nature
        return default if value is None or (value < 0 and not name.endswith("_db")) else value

    bands = cin_channels if cin_channels > 0 else number("num_mels", 80)
    rate, n_fft = number("sample_rate", 22050), number("fft_size", 1024)
    in_samples = lambda name, default: int(number(name, default * 1000 / rate) * rate / 1000 + 1e-6)
    common = {
        "sample_rate": rate, "n_fft": n_fft, "hop_length": number("hop_size", in_samples("frame_shift_ms", n_fft // 4)),
        "n_mels": bands, "fmin": number("fmin", 125), "fmax": number("fmax", None if "fmax" in hparams else 7600),
    }  # fmt: skip
    if of_2018:
        if n_fft % common["hop_length"]:
            logger.warning("%s: lws has no hop of %s in %s: mels must come from elsewhere", path, common["hop_length"], n_fft)
            return None
        least, reference = number("min_level_db", -100), number("ref_level_db", 20)
        level = {"floor": 10 ** (least / 20), "affine": (-reference - least, -least)}
        return Preprocessing(MelConfig.preset("r9y9_2018", win_length=n_fft, **common, **level))
    window = number("win_length", in_samples("win_length_ms", n_fft))
    mel = MelConfig.preset("r9y9", win_length=window, **common, **_statistics(path, bands))
    gain, cutoff = (float(number(name, default)) for name, default in (("global_gain_scale", 1.0), ("highpass_cutoff", 0.0)))
    return Preprocessing(mel, PREEMPHASIS if before else 0.0, gain or 1.0, highpass=cutoff)


def _weights(contents) -> dict:
    state = contents.get("state_dict", contents) if isinstance(contents, dict) else {}
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    return strip_prefix(state, "module.") if named else {}


def _compare(found: dict, hparams: dict, path, source) -> None:
    """Raise where hparams.json belongs to other weights. After this no size comes from it alone."""
    kind = hparams.get("input_type", "raw" if found["scalar_input"] else "mulaw-quantize")
    if kind not in INPUT_TYPES:
        raise ConfigError(f"{source}: input_type: got {kind!r}, expected one of {list(INPUT_TYPES)}")
    said = {**hparams, "scalar_input": INPUT_TYPES[kind]}
    said.pop("use_speaker_embedding", None)  # upstream never sets it; the weights tell
    for name in ("cin_channels", "gin_channels"):
        if isinstance(said.get(name), int) and said[name] <= 0:
            said[name] = -1
    for name, value in found.items():
        pairs = [(name, value, said.get(name))]
        if name == "upsample_params":
            given = said.get(name) or {}
            if not isinstance(given, dict):
                raise ConfigError(f"{source}: upsample_params must be an object, got {given!r}")
            pairs = [(f"{name}.{key}", inner, given.get(key)) for key, inner in value.items()]
        for label, have, want in pairs:
            if want is not None and want != have:
                said_so = f"{have} in the weights, {want!r} in {source.name}"
                raise IncompatibleCheckpointError(f"{path}: {label} is {said_so}")


def _statistics(path, bands: int) -> dict:
    for name in ("meanvar.npy", "meanvar.joblib"):
        if (path.parent / name).is_file():
            mean, scale = read_statistics(path.parent / name, bands)
            return {"mean": mean, "scale": scale}
    return {}
