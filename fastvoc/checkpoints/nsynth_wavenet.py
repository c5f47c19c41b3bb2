"""bfs18/nsynth_wavenet's Parallel WaveNet students (TensorFlow 1), as a .npz of their variables.

TensorFlow's own checkpoint files are not read; with TensorFlow at hand, once:

    reader = tf.train.load_checkpoint(folder)
    np.savez("student.npz", **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})

    iaf_F/{start_conv, dilated_conv_I, mel_cond_I, res_I, out1, mel_cond_out1, out2_mean, out2_scale}/{W [1, k, in, out], biases}
    iaf_share/trans_conv_I/{kernel [1, k, out, in], bias}                       F, I from 1; shared by all flows

Names ending in ExponentialMovingAverage, upstream's averaged weights, stand before the plain ones. The sigmoid half of
the gate comes first. What shapes do not tell are options: `distribution` of the noise, `strides` of the upsampler
(default: a quarter of its kernels) and `cycle`, after how many layers the dilations start again.
"""

import zipfile

import numpy as np
import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import MAX_BYTES, float_tensors
from fastvoc.errors import (
    ConfigError,
    CorruptCheckpointError,
    FastvocError,
    IncompatibleCheckpointError,
    ResourceLimitError,
)
from fastvoc.models.parallel_wavenet import ParallelWaveNet, ParallelWaveNetConfig, doubling
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import load_weights

LAYOUT = "bfs18/nsynth_wavenet's student, its variables as .npz"
AVERAGED = "/ExponentialMovingAverage"


def read_arrays(path) -> dict[str, Tensor]:
    """The arrays of a .npz as tensors. Raises CorruptCheckpointError, ResourceLimitError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise ResourceLimitError(f"{path} would unpack to more than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            numbers = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as fault:
        raise CorruptCheckpointError(f"{path} is damaged or no .npz: {str(fault)[:200]}") from None
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in numbers.items() if a.dtype.kind == "f"}


def matches(contents, path) -> bool:
    return isinstance(contents, dict) and any(str(key).startswith("iaf_1/start_conv/") for key in contents)


def read(contents, path, distribution: str = "logistic", strides=None, cycle: int = 10) -> ParallelWaveNet:
    variables = float_tensors(contents, path)
    try:
        state = canonical(variables)
        config = _config(state, distribution, strides, cycle)
    except FastvocError:
        raise
    except (KeyError, IndexError, ValueError, RuntimeError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a variable is missing or has a wrong rank: {fault}") from None
    model = ParallelWaveNet(config)
    load_weights(model, state, path)
    model.preprocessing = Preprocessing(MelConfig.preset("bfs18", n_mels=model.n_mels, hop_length=model.hop_length))
    return model.eval()


def unused(contents) -> list[str]:
    """The variables as they were last, where their averages are there too."""
    return [name for name in contents if name + AVERAGED in contents]


def canonical(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's variables -> ParallelWaveNet's parameters. Differentiable."""
    averaged = {k.removesuffix(AVERAGED): v for k, v in variables.items() if k.endswith(AVERAGED)}
    v = {**variables, **averaged}
    ours = {}
    for i in range(_count(v, "iaf_share/trans_conv_{}/kernel")):
        name = f"iaf_share/trans_conv_{i + 1}"
        ours[f"upsample_net.up_layers.{i}.weight"] = v[f"{name}/kernel"][0].permute(2, 1, 0)
        ours[f"upsample_net.up_layers.{i}.bias"] = v[f"{name}/bias"]
    for f in range(_count(v, "iaf_{}/start_conv/W")):
        weight = lambda name, f=f: v[f"iaf_{f + 1}/{name}/W"][0].permute(2, 1, 0)
        bias = lambda name, f=f: v[f"iaf_{f + 1}/{name}/biases"]
        flow = {
            "front.weight": weight("start_conv"),
            "front.bias": bias("start_conv"),
            "hidden.weight": weight("out1"),
            "hidden.bias": bias("out1") + bias("mel_cond_out1"),
            "hidden_cond.weight": weight("mel_cond_out1"),
            "last.weight": torch.cat([weight("out2_mean"), weight("out2_scale")]),
            "last.bias": torch.cat([bias("out2_mean"), bias("out2_scale")]),
        }
        for i in range(_count(v, f"iaf_{f + 1}/dilated_conv_{{}}/W")):
            conv, cond, res = f"dilated_conv_{i + 1}", f"mel_cond_{i + 1}", f"res_{i + 1}"
            flow |= {
                f"stack.layers.{i}.conv.weight": _tanh_first(weight(conv)),
                f"stack.layers.{i}.conv.bias": _tanh_first(bias(conv) + bias(cond)),
                f"stack.layers.{i}.cond.weight": _tanh_first(weight(cond)),
                f"stack.layers.{i}.out.weight": weight(res),
                f"stack.layers.{i}.out.bias": bias(res),
            }
        ours |= {f"flows.{f}.{key}": value.contiguous() for key, value in flow.items()}
    return ours


def _tanh_first(rows: Tensor) -> Tensor:
    sigmoid, tanh = rows.chunk(2)
    return torch.cat([tanh, sigmoid])


def _count(variables: dict, pattern: str) -> int:
    n = 0
    while pattern.format(n + 1) in variables:
        n += 1
    return n


def _config(state: dict, distribution: str, strides, cycle: int) -> ParallelWaveNetConfig:
    ups = [value for key, value in state.items() if key.startswith("upsample_net.") and key.endswith(".weight")]
    kernels = [w.shape[2] for w in ups]
    strides = [k // 4 for k in kernels] if strides is None else [int(s) for s in strides]
    if len(strides) != len(kernels):
        raise ConfigError(f"strides are {strides}, the upsampler has {len(kernels)} layers")
    layers = []
    for key in state:
        if key.endswith(".conv.weight"):
            f = int(key.split(".")[1])
            layers += [0] * (f + 1 - len(layers))
            layers[f] += 1
    G, R, k = state["flows.0.stack.layers.0.conv.weight"].shape
    return ParallelWaveNetConfig.original(
        dilations=doubling(*layers, cycle=cycle), residual_channels=R, gate_channels=G, kernel_size=k,
        front_kernel=state["flows.0.front.weight"].shape[2], head_channels=state["flows.0.hidden.weight"].shape[0],
        distribution=distribution, cin_channels=ups[0].shape[0], cond_channels=ups[-1].shape[1],
        upsample_params={"kernels": kernels, "strides": strides, "channels": ups[-1].shape[1]},
    )  # fmt: skip
