"""ksw0306/ClariNet, teacher and student: checkpoint_step*_ema.pth.

    {'state_dict', 'optimizer', 'global_step', 'global_epoch'}, or the state_dict alone; weight norm in any spelling

The teacher is a WaveNet: a front convolution of 32 taps and ReLU, filter and gate convolutions apart, conditioning with
bias, skips summed as they are, dilations kernel_size^n. The student is a Parallel WaveNet of inverse autoregressive
flows, dilations 2^n; it has no upsampler of its own and borrows its teacher's: load(student, teacher=path).

What shapes do not tell is how many blocks, each starting again at dilation 1, the layers form; `blocks` says it. Without
it they are upstream's own defaults where these fit: two blocks for a teacher, of ten layers where it has more than twenty,
and one for each flow of a student, of ten layers where all flows have tens of them. Flows of different lengths tell it: their
blocks are the longest that fit all of them. What was taken is logged, and `fastvoc inspect` shows the dilations.
"""

import logging
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.reading import float_tensors, read_file
from fastvoc.checkpoints.weight_norm import fold_weight_norm, strip_prefix
from fastvoc.errors import ConfigError, FastvocError, IncompatibleCheckpointError
from fastvoc.models.parallel_wavenet import ParallelWaveNet, ParallelWaveNetConfig
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import check_names, load_weights
from fastvoc.models.wavenet import WaveNet, WaveNetConfig

LAYOUT = "ksw0306/ClariNet, teacher or student (checkpoint_step*.pth)"
DEFAULT_LAYERS = 10  # of a block, upstream's
logger = logging.getLogger("fastvoc")
NAMES = re.compile(
    r"(iafs\.\d+\.)?(front_conv\.0\.conv|final_conv\.[13]\.conv|upsample_conv\.\d+"
    r"|res_blocks\.\d+\.((filter|gate)_conv\.conv|(filter|gate)_conv_c|(res|skip)_conv))\.(weight|bias)"
)


def matches(contents, path) -> bool:
    keys = _weights(contents)
    return any(key.startswith(("res_blocks.0.filter_conv.", "iafs.0.res_blocks.0.filter_conv.")) for key in keys)


def read(contents, path, teacher=None, blocks: int | None = None) -> WaveNet | ParallelWaveNet:
    """teacher: the path of the student's teacher.   blocks: of the teacher, or of each flow of the student"""
    weights = fold_weight_norm(float_tensors(_weights(contents), path))
    check_names(weights, [name for name in weights if NAMES.fullmatch(name)], path)
    if not any(key.startswith("iafs.") for key in weights):
        if teacher is not None:
            raise ConfigError(f"{path} is a ClariNet teacher itself; teacher= belongs to a student")
        state = complete(path, canonical, weights)
        model = WaveNet(complete(path, teacher_config, state, blocks))
    else:
        if teacher is None:
            raise ConfigError(
                f"{path} is a ClariNet student, whose upsampler is in its teacher's file.",
                hint="Name it: fastvoc.load(student, teacher=teacher_path), or --teacher PATH on the command line.",
            )
        state = complete(path, canonical, weights, _teacher_weights(teacher))
        model = ParallelWaveNet(complete(path, student_config, state, blocks))
    load_weights(model, state, path)
    if blocks is None:
        took = model.config.dilations
        logger.info("%s: dilations taken to be %s, which the weights do not tell; blocks= says otherwise", path, took)
    model.preprocessing = Preprocessing(MelConfig.preset("clarinet", n_mels=model.n_mels, hop_length=model.hop_length))
    return model.eval()


def canonical(state_dict: dict[str, Tensor], teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Upstream's parameters, weight norm in place or not -> WaveNet's or ParallelWaveNet's. Differentiable.

    teacher: the state_dict that a student borrows its upsampler from
    """
    state = fold_weight_norm(strip_prefix(state_dict, "module."))
    flows = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("iafs.")), default=-1)
    if not flows:
        return {**_teacher(state), **_upsampler(state)}
    ours = _upsampler(fold_weight_norm(strip_prefix(teacher, "module."))) if teacher is not None else {}
    for f in range(flows):
        prefix = f"iafs.{f}."
        flow = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        ours |= {f"flows.{f}.{key}": value for key, value in _flow(flow).items()}
    return ours


def complete(path, function, *args):
    try:
        return function(*args)
    except FastvocError:
        raise
    except (KeyError, IndexError, ValueError, RuntimeError) as fault:
        raise IncompatibleCheckpointError(f"{path}: a weight is missing or has a wrong rank: {fault}") from None


def teacher_config(state: dict, blocks: int | None) -> WaveNetConfig:
    layers = sum(key.startswith("conv_layers.") and key.endswith(".conv.weight") for key in state)
    blocks = _usual_blocks(layers) if blocks is None else blocks
    G, R, k = state["conv_layers.0.conv.weight"].shape
    return WaveNetConfig(
        out_channels=state["last_conv_layers.3.weight"].shape[0], layers=layers, residual_channels=R, gate_channels=G,
        skip_out_channels=state["conv_layers.0.conv1x1_skip.weight"].shape[0], kernel_size=k,
        cin_channels=state["conv_layers.0.conv1x1c.weight"].shape[1], **_upsample_config(state),
        upsample_conditional_features=True, scalar_input=True, output_distribution="Normal",
        dilations=_dilations(layers, blocks, k), skip_scale=1.0, conditioning_bias=True,
        head_channels=state["last_conv_layers.1.weight"].shape[0],
        front_kernel=state["first_conv.weight"].shape[2], front_activation="relu",
    )  # fmt: skip


def student_config(state: dict, blocks: int | None) -> ParallelWaveNetConfig:
    layers = {}  # of each flow
    for key in state:
        if key.startswith("flows.") and key.endswith(".conv.weight"):
            flow = int(key.split(".")[1])
            layers[flow] = layers.get(flow, 0) + 1
    a_block = math.gcd(*layers.values())  # flows of different lengths are of different numbers of blocks
    a_block = a_block if a_block % DEFAULT_LAYERS else DEFAULT_LAYERS
    G, R, k = state["flows.0.stack.layers.0.conv.weight"].shape
    return ParallelWaveNetConfig(
        dilations=[_dilations(layers[f], layers[f] // a_block if blocks is None else blocks, 2) for f in sorted(layers)],
        residual_channels=R, gate_channels=G, kernel_size=k,
        skip_channels=state["flows.0.stack.layers.0.out.weight"].shape[0] - R,
        front_kernel=state["flows.0.front.weight"].shape[2], head_channels=state["flows.0.hidden.weight"].shape[0],
        cin_channels=state["flows.0.stack.layers.0.cond.weight"].shape[1], **_upsample_config(state),
    )  # fmt: skip


def _usual_blocks(layers: int) -> int:
    """Of a teacher with so many layers."""
    if layers > 2 * DEFAULT_LAYERS and layers % DEFAULT_LAYERS == 0:
        return layers // DEFAULT_LAYERS
    return 1 if layers % 2 else 2


def _dilations(layers: int, blocks: int, base: int) -> list[int]:
    if type(blocks) is not int or blocks < 1 or layers % blocks:
        raise ConfigError(
            f"{layers} layers do not form {blocks!r} equal blocks.",
            hint="Say how many: fastvoc.load(path, blocks=…), or --reader blocks=… on the command line.",
        )
    return [base ** (i % (layers // blocks)) for i in range(layers)]


def _upsample_config(state: dict) -> dict:
    prefix = "upsample_net.up_layers."
    numbers = sorted(int(key.split(".")[2]) for key in state if key.startswith(prefix) and key.endswith(".weight"))
    kernels = [state[f"{prefix}{number}.weight"].shape for number in numbers]
    params = {"upsample_scales": [kernel[3] // 2 for kernel in kernels], "freq_axis_kernel_size": kernels[0][2]}
    return {"upsample_net": "ConvTranspose2dUpsampleNetwork", "upsample_params": params}


def _upsampler(state: dict) -> dict:
    prefix = "upsample_conv."
    return {"upsample_net.up_layers." + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _n_blocks(state: dict) -> int:
    return sum(key.startswith("res_blocks.") and key.endswith(".res_conv.weight") for key in state)


def _gates(state: dict, block: int, name: str) -> Tensor:
    """The tanh half, then the sigmoid half."""
    return torch.cat([state[f"res_blocks.{block}.{half}_{name}"] for half in ("filter", "gate")])


def _teacher(state: dict) -> dict:
    ours = _ends(state, "first_conv", "last_conv_layers.1", "last_conv_layers.3")
    for i in range(_n_blocks(state)):
        for kind in ("weight", "bias"):
            ours |= {
                f"conv_layers.{i}.conv.{kind}": _gates(state, i, f"conv.conv.{kind}"),
                f"conv_layers.{i}.conv1x1c.{kind}": _gates(state, i, f"conv_c.{kind}"),
                f"conv_layers.{i}.conv1x1_out.{kind}": state[f"res_blocks.{i}.res_conv.{kind}"],
                f"conv_layers.{i}.conv1x1_skip.{kind}": state[f"res_blocks.{i}.skip_conv.{kind}"],
            }
    return ours


def _flow(state: dict) -> dict:
    ours = _ends(state, "front", "hidden", "last")
    for i in range(_n_blocks(state)):
        layer = f"stack.layers.{i}."
        ours |= {
            layer + "conv.weight": _gates(state, i, "conv.conv.weight"),
            layer + "conv.bias": _gates(state, i, "conv.conv.bias") + _gates(state, i, "conv_c.bias"),
            layer + "cond.weight": _gates(state, i, "conv_c.weight"),
        }
        for kind in ("weight", "bias"):
            outputs = [state[f"res_blocks.{i}.{name}_conv.{kind}"] for name in ("res", "skip")]
            ours[layer + f"out.{kind}"] = torch.cat(outputs)
    return ours


def _ends(state: dict, front: str, hidden: str, last: str) -> dict:
    names = {"front_conv.0.conv": front, "final_conv.1.conv": hidden, "final_conv.3.conv": last}
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}


def _weights(contents) -> dict:
    state = contents.get("state_dict", contents) if isinstance(contents, dict) else {}
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    return strip_prefix(state, "module.") if named else {}


def _teacher_weights(path) -> dict:
    path = Path(path)
    weights = _weights(read_file(path))
    if not any(key.startswith("upsample_conv.") for key in weights):
        raise IncompatibleCheckpointError(f"{path} is no ClariNet teacher: it has no upsample_conv.*")
    return float_tensors(weights, path)
