"""nv-wavenet's exported weights (pytorch/wavenet.py, export_weights): the file model.pt that its kernels are given.

    x = E_prev[y(t-2)] + E_curr[y(t-1)], or the tanh of it       dilations 1, 2 … max_dilation, and again
    residual and skip unscaled; the last layer has no residual; the output convolutions have no bias

The file has no upsampler: conditioning is made outside, per layer, and goes to infer(layer_conditioning=…). The order
there is (B, layers, 2R, n_samples); nv-wavenet's own cond_input (2R, B, layers, n_samples) is permuted by (1, 2, 0, 3).
"""

import torch
from torch import Tensor

from fastvoc.checkpoints.reading import float_tensors
from fastvoc.errors import IncompatibleCheckpointError
from fastvoc.models.pretrained import load_weights
from fastvoc.models.wavenet import WaveNet, WaveNetConfig

LAYOUT = "nv-wavenet's exported weights (model.pt)"
TENSORS = ["embedding_prev", "embedding_curr", "conv_out_weight", "conv_end_weight"]
LISTS = ["dilate_weights", "dilate_biases", "res_weights", "res_biases", "skip_weights", "skip_biases"]


def matches(contents, path) -> bool:
    return isinstance(contents, dict) and {"embedding_curr", "dilate_weights", "conv_end_weight"} <= set(contents)


def read(contents, path) -> WaveNet:
    w = _checked(contents, path)
    L, (G, R, kernel) = len(w["dilate_weights"]), w["dilate_weights"][0].shape
    head, S, _ = w["conv_out_weight"].shape
    if G != 2 * R or kernel != 2:
        raise IncompatibleCheckpointError(f"{path}: dilate_weights are ({G}, {R}, {kernel}), expected (2R, R, 2)")
    sees_two = bool(w["embedding_prev"].any())
    config = WaveNetConfig(
        out_channels=len(w["conv_end_weight"]), layers=L, residual_channels=R, gate_channels=G, skip_out_channels=S,
        kernel_size=2, dilations=[2 ** (i % contents["max_dilation"].bit_length()) for i in range(L)],
        residual_scale=1.0, skip_scale=1.0, head_channels=head,
        front_kernel=2 if sees_two else 1, front_activation="tanh" if contents["use_embed_tanh"] else "none",
    )
    tables = [w["embedding_prev"], w["embedding_curr"]] if sees_two else [w["embedding_curr"]]
    state = {
        "first_conv.weight": torch.stack([table.t() for table in tables], 2), "first_conv.bias": torch.zeros(R),
        "last_conv_layers.1.weight": w["conv_out_weight"], "last_conv_layers.1.bias": torch.zeros(head),
        "last_conv_layers.3.weight": w["conv_end_weight"], "last_conv_layers.3.bias": torch.zeros(config.out_channels),
    }
    last = [torch.zeros(R, R, 1)], [torch.zeros(R)]
    for name, values in (
        ("conv.weight", w["dilate_weights"]), ("conv.bias", w["dilate_biases"]),
        ("conv1x1_skip.weight", w["skip_weights"]), ("conv1x1_skip.bias", w["skip_biases"]),
        ("conv1x1_out.weight", w["res_weights"] + last[0]), ("conv1x1_out.bias", w["res_biases"] + last[1]),
    ):
        state |= {f"conv_layers.{i}.{name}": value for i, value in enumerate(values)}
    model = WaveNet(config)
    load_weights(model, state, path)
    return model.eval()


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
