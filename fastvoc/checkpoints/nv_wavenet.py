"""nv-wavenet (NVIDIA): the training checkpoint of pytorch/train.py, and the weights that export_weights makes for the kernels.

    x = E_prev[y(t-2)] + E_curr[y(t-1)], or the tanh of it       dilations 1, 2 … max_dilation, and again
    residual and skip unscaled; the last layer has no residual; the output convolutions have no bias

    wavenet_*   {'model': a pickled wavenet.WaveNet, …}: upsample, cond_layers, dilate_layers.{i}, res_layers.{i} (one less),
                skip_layers.{i}, each with .conv; embed, conv_out, conv_end. There is no E_prev
    model.pt    {embedding_curr, dilate_weights: [L tensors], …}: what is behind the conditioning

The exported file has no upsampler: conditioning is made outside, per layer, and goes to infer(layer_conditioning=…). The
order there is (B, layers, 2R, n_samples); nv-wavenet's own cond_input (2R, B, layers, n_samples) is permuted by (1, 2, 0, 3).

Upstream trains sample t on the conditioning of t - 1 and generates it from that of t; so do `forward` and `infer` here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.checkpoints.unpickle import PickledModule
from fastvoc.checkpoints.weight_norm import strip_prefix
from fastvoc.errors import ConfigError, IncompatibleCheckpointError
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import check_names, load_weights
from fastvoc.models.wavenet import WaveNet, WaveNetConfig

LAYOUT = "nv-wavenet's training checkpoint (wavenet_*) or exported weights (model.pt)"
TENSORS = ["embedding_prev", "embedding_curr", "conv_out_weight", "conv_end_weight"]
LISTS = ["dilate_weights", "dilate_biases", "res_weights", "res_biases", "skip_weights", "skip_biases"]
TRAINED = {"embed.weight", "dilate_layers.0.conv.weight", "conv_end.conv.weight", "cond_layers.conv.weight"}
SAMPLE_RATE = 16000  # upstream's only one; no file says it


def matches(contents, path) -> bool:
    if isinstance(contents, dict) and {"embedding_curr", "dilate_weights", "conv_end_weight"} <= set(contents):
        return True
    return set(_trained(contents)) >= TRAINED


def read(contents, path, max_dilation: int | None = None, upsample_stride: int | None = None) -> WaveNet:
    """max_dilation, upsample_stride: for a training checkpoint's state_dict alone, whose shapes do not tell them."""
    state, upsampler = _trained(contents), {}
    if state:
        state = _checked_training(state, path)
        model = contents.get("model") if isinstance(contents, dict) else contents
        if isinstance(model, PickledModule):
            max_dilation, upsample_stride = _numbers_of(model, path)
        for name, value in (("max_dilation", max_dilation), ("upsample_stride", upsample_stride)):
            if type(value) is not int or not 1 <= value <= 1 << 20:
                raise ConfigError(
                    f"{path}: {name} is {value!r}, expected 1…{1 << 20}; the weights do not tell it.",
                    hint=f"Pass {name}=… (on the command line --reader {name}=…).",
                )
        cin, _, window = state["upsample.weight"].shape
        upsampler = {
            "cin_channels": cin, "conditioning_bias": True, "upsample_conditional_features": True,
            "upsample_net": "ConvTranspose1dUpsampleNetwork",
            "upsample_params": {"window": -(-window // upsample_stride) * upsample_stride, "stride": upsample_stride},
        }
        contents = {**exported(state), "max_dilation": max_dilation}
    w = _checked(contents, path)
    L, (G, R, kernel) = len(w["dilate_weights"]), w["dilate_weights"][0].shape
    if G != 2 * R or kernel != 2:
        raise IncompatibleCheckpointError(f"{path}: dilate_weights are ({G}, {R}, {kernel}), expected (2R, R, 2)")
    head = w["conv_out_weight"].shape[0]
    config = WaveNetConfig(
        out_channels=len(w["conv_end_weight"]), layers=L, residual_channels=R, gate_channels=G,
        skip_out_channels=w["conv_out_weight"].shape[1], kernel_size=2,
        dilations=[2 ** (i % contents["max_dilation"].bit_length()) for i in range(L)],
        residual_scale=1.0, skip_scale=1.0, head_channels=head, front_kernel=2 if w["embedding_prev"].any() else 1,
        front_activation="tanh" if contents["use_embed_tanh"] else "none", **upsampler,
    )
    model = WaveNet(config)
    load_weights(model, canonical(state, upsample_stride) if state else _canonical(w), path)
    if state:
        model.preprocessing = _preprocessing(*state["upsample.weight"].shape[1:], upsample_stride)
    return model.eval()


def canonical(state: dict[str, Tensor], upsample_stride: int) -> dict[str, Tensor]:
    """The training checkpoint's parameters as those of WaveNet. Differentiable."""
    conditioning = {
        f"conv_layers.{i}.conv1x1c.{kind}": part
        for kind in ("weight", "bias")
        for i, part in enumerate(state[f"cond_layers.conv.{kind}"].chunk(_n_layers(state)))
    }
    # Taps of zero behind the window change nothing, and make it a multiple of the stride
    window = F.pad(state["upsample.weight"], (0, -state["upsample.weight"].shape[2] % upsample_stride))
    upsampler = {"upsample_net.conv.weight": window, "upsample_net.conv.bias": state["upsample.bias"]}
    return {**_canonical(exported(state)), **conditioning, **upsampler}


def exported(state: dict[str, Tensor]) -> dict:
    """What upstream's export_weights makes of the trained parameters, but for max_dilation."""
    layers = _n_layers(state)
    lists = {
        f"{part}_{plural}": [state[f"{part}_layers.{i}.conv.{kind}"] for i in range(n)]
        for part, n in (("dilate", layers), ("res", layers - 1), ("skip", layers))
        for kind, plural in (("weight", "weights"), ("bias", "biases"))
    }
    embedding = state["embed.weight"]
    return {
        "embedding_prev": torch.zeros_like(embedding), "embedding_curr": embedding, "use_embed_tanh": False,
        "conv_out_weight": state["conv_out.conv.weight"], "conv_end_weight": state["conv_end.conv.weight"], **lists,
    }


def _canonical(w: dict) -> dict[str, Tensor]:
    """The exported tensors as WaveNet's parameters."""
    tables = [w["embedding_prev"], w["embedding_curr"]] if w["embedding_prev"].any() else [w["embedding_curr"]]
    classes, R = w["embedding_curr"].shape
    zeros = w["embedding_curr"].new_zeros
    state = {
        "first_conv.weight": torch.stack([table.t() for table in tables], 2), "first_conv.bias": zeros(R),
        "last_conv_layers.1.weight": w["conv_out_weight"], "last_conv_layers.1.bias": zeros(len(w["conv_out_weight"])),
        "last_conv_layers.3.weight": w["conv_end_weight"], "last_conv_layers.3.bias": zeros(len(w["conv_end_weight"])),
    }
    for name, values in (
        ("conv.weight", w["dilate_weights"]), ("conv.bias", w["dilate_biases"]),
        ("conv1x1_skip.weight", w["skip_weights"]), ("conv1x1_skip.bias", w["skip_biases"]),
        ("conv1x1_out.weight", [*w["res_weights"], zeros(R, R, 1)]), ("conv1x1_out.bias", [*w["res_biases"], zeros(R)]),
    ):
        state |= {f"conv_layers.{i}.{name}": value for i, value in enumerate(values)}
    return state


def _trained(contents) -> dict:
    """The training checkpoint's parameters, or nothing."""
    state = contents.get("model", contents.get("state_dict", contents)) if isinstance(contents, dict) else contents
    if isinstance(state, PickledModule):
        state = state.state_dict()
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    state = strip_prefix(state, "module.") if named else {}
    return state if TRAINED <= set(state) else {}


def _n_layers(state: dict) -> int:
    return sum(name.startswith("dilate_layers.") and name.endswith(".weight") for name in state)


def _numbers_of(model: PickledModule, path) -> tuple[int, int]:
    """max_dilation and the upsampler's stride, from the pickled object's attributes."""
    upsample = model.attributes.get("_modules", {}).get("upsample")
    stride = upsample.attributes.get("stride") if isinstance(upsample, PickledModule) else None
    return model.attributes.get("max_dilation"), stride[0] if isinstance(stride, tuple | list) and stride else stride


def _checked_training(state: dict, path) -> dict[str, Tensor]:
    L = _n_layers(state)
    kinds = "weight", "bias"
    names = [f"{part}.conv.{kind}" for i in range(L) for part in (f"dilate_layers.{i}", f"skip_layers.{i}") for kind in kinds]
    names += [f"res_layers.{i}.conv.{kind}" for i in range(L - 1) for kind in kinds]
    names += [f"{part}.{kind}" for part in ("upsample", "cond_layers.conv") for kind in kinds]
    names += ["embed.weight", "conv_out.conv.weight", "conv_end.conv.weight"]
    check_names(state, names, path)
    state = float_tensors(state, path)
    upsample, cond = state["upsample.weight"], state["cond_layers.conv.weight"]
    if upsample.dim() != 3 or cond.dim() != 3 or len(cond) % L or cond.shape[1] != upsample.shape[1]:
        raise IncompatibleCheckpointError(
            f"{path}: upsample.weight is {tuple(upsample.shape)} and cond_layers.conv.weight {tuple(cond.shape)}, "
            f"expected (n_mels, n_mels, window) and ({L} · 2R, n_mels, 1)"
        )
    return state


def _preprocessing(n_mels: int, window: int, hop: int) -> Preprocessing | None:
    """No file tells the mel's convention; upstream's config.json has one window for the STFT and the upsampler."""
    if not hop <= window or n_mels > window // 2 + 1:
        return None
    return Preprocessing(MelConfig.preset(
        "tacotron", sample_rate=SAMPLE_RATE, n_fft=window, win_length=window, hop_length=hop, n_mels=n_mels,
        fmax=SAMPLE_RATE / 2,
    ))  # fmt: skip


def _checked(contents: dict, path) -> dict[str, Tensor | list[Tensor]]:
    missing = [k for k in (*TENSORS, *LISTS, "max_dilation", "use_embed_tanh") if k not in contents]
    if missing:
        raise IncompatibleCheckpointError(f"{path}: missing: {', '.join(missing)}")
    L = len(contents["dilate_weights"])
    for name in LISTS:
        expected = L - 1 if name.startswith("res") else L
        if not isinstance(contents[name], list) or len(contents[name]) != expected or not L:
            raise IncompatibleCheckpointError(f"{path}: {name} is no list of {expected} tensors, as {L} layers need")
        float_tensors({f"{name}[{i}]": value for i, value in enumerate(contents[name])}, path)
    tensors = float_tensors({name: contents[name] for name in TENSORS}, path)
    for name, t, rank in [(n, t, 2 if n.startswith("emb") else 3) for n, t in tensors.items()] + [
        ("dilate_weights[0]", contents["dilate_weights"][0], 3)
    ]:
        if t.dim() != rank:
            raise IncompatibleCheckpointError(f"{path}: {name} is {tuple(t.shape)}, expected {rank} dimensions")
    if tensors["embedding_prev"].shape != tensors["embedding_curr"].shape:
        raise IncompatibleCheckpointError(f"{path}: embedding_prev and embedding_curr differ in shape")
    if not isinstance(contents["max_dilation"], int) or not 1 <= contents["max_dilation"] <= 1 << 20:
        raise IncompatibleCheckpointError(f"{path}: max_dilation is {contents['max_dilation']!r}, expected 1…{1 << 20}")
    return {name: contents[name] for name in (*TENSORS, *LISTS)}
