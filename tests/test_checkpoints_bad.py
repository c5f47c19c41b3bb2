"""Weights that do not fit, in every public layout; archives and heads made to hurt; and no other way to unpickle."""

import json
import re
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc.checkpoints import read_file
from fastvoc.checkpoints.families import nearest
from fastvoc.checkpoints.unpickle import PickledModule
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    FastvocError,
    IncompatibleCheckpointError,
    ResourceLimitError,
)
from tests.goldens import DATA

torch.set_num_threads(1)

# file: where the weights lie in it, options, one weight that every such model needs, whose names they are
FILES = {
    "wavenet-r9y9-a/checkpoint_step001000000_ema.pth": (["state_dict"], {}, "conv_layers.2.conv1x1_skip.bias", "r9y9's WaveNet"),
    "nv-wavenet-a/wavenet_120000": (["model"], {}, "dilate_layers.2.conv.bias", "nv-wavenet"),
    "waveglow-a/waveglow_256channels_a.pt": (["model"], {}, "WN.1.start.bias", "NVIDIA's WaveGlow"),
    "waveglow-a/waveglow_tiny_legacy.pt": (["model"], {}, "WN.1.start.bias", "NVIDIA's WaveGlow"),
    "diffwave-lmnt-a/weights-1000578.pt": (["model"], {}, "residual_layers.1.dilated_conv.bias", "lmnt's DiffWave"),
    "diffwave-philsyn-a/1000000.pkl": (
        ["model_state_dict"], {}, "residual_layer.residual_blocks.1.res_conv.bias", "philsyn's DiffWave",
    ),
    "pwg-a/checkpoint-400000steps.pkl": (["model", "generator"], {}, "conv_layers.1.conv1x1_skip.bias", "Parallel WaveGAN"),
    "clarinet-a/teacher_checkpoint_step000654321_ema.pth": (["state_dict"], {}, "res_blocks.1.skip_conv.bias", "ClariNet"),
    "clarinet-a/student_checkpoint_step000210000_ema.pth": (
        ["state_dict"], {"teacher": "teacher_checkpoint_step000654321_ema.pth"}, "iafs.1.res_blocks.1.skip_conv.bias", "ClariNet",
    ),
}  # fmt: skip


def changed(folder, file, change) -> tuple[Path, dict]:
    """A copy of the golden whose weights went through change(state)."""
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    place, options, *_ = FILES[file]
    shutil.copytree((DATA / file).parent, folder, dirs_exist_ok=True)
    path = folder / Path(file).name
    contents = read_file(path)
    outer = contents
    for name in place[:-1]:
        outer = outer[name]
    state = outer[place[-1]]
    if isinstance(state, PickledModule):  # a state_dict alone, and what it does not tell
        kind, state = state.class_name, state.state_dict()
        options = {"max_dilation": 8, "upsample_stride": 40} if kind == "wavenet.WaveNet" else {"coupling": "standard"}
    outer[place[-1]] = change(dict(state))
    torch.save(contents, path)
    return path, {name: path.parent / value if name == "teacher" else value for name, value in options.items()}


@pytest.mark.parametrize("file", FILES)
def test_unchanged_files_load(tmp_path, file):
    path, options = changed(tmp_path, file, lambda state: state)
    assert fastvoc.load(path, **options).hop_length > 0


@pytest.mark.parametrize("file", FILES)
def test_missing_and_unexpected_weights(tmp_path, file):
    _, _, name, project = FILES[file]
    path, options = changed(tmp_path, file, lambda state: {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match="missing.*bias"):
        fastvoc.load(path, **options)
    path, options = changed(tmp_path, file, lambda state: {**state, "extra.colour": torch.ones(2)})
    with pytest.raises(IncompatibleCheckpointError, match=rf"extra\.colour.*nearest to those of {project}"):
        fastvoc.load(path, **options)


@pytest.mark.parametrize("file", FILES)
def test_weights_that_are_no_numbers(tmp_path, file):
    name = FILES[file][2]

    def with_nan(state):
        state[name] = torch.full_like(state[name], torch.nan)
        return state

    path, options = changed(tmp_path, file, with_nan)
    with pytest.raises(CheckpointError, match=rf"NaN or infinity in .*{re.escape(name)} \((\d+) of \1 numbers\).*--allow-nan"):
        fastvoc.load(path, **options)
    model = fastvoc.load(path, check_finite=False, **options)
    assert not all(p.isfinite().all() for p in model.state_dict().values())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("value", [torch.ones(3, dtype=torch.int64), "text", torch.ones(7, 7, 7, 7), torch.ones(0)])
def test_weights_of_another_kind(tmp_path, file, value):
    path, options = changed(tmp_path, file, lambda state: {**state, FILES[file][2]: value})
    with pytest.raises(CheckpointError):
        fastvoc.load(path, **options)


@pytest.mark.parametrize("file", FILES)
def test_every_weight_is_checked(tmp_path, file):
    """Any one weight cut to one number, or gone: an error of ours (or, for a weight of one number, a model)."""
    names, refused = [], 0
    changed(tmp_path, file, lambda state: (names.extend(state), state)[1])
    rng = np.random.default_rng(0)
    for name in rng.permutation(names)[:12]:
        for change in (lambda s: {**s, name: torch.zeros(1)}, lambda s: {k: v for k, v in s.items() if k != name}):  # noqa: B023
            path, options = changed(tmp_path, file, change)
            try:
                fastvoc.load(path, **options)
            except FastvocError:
                refused += 1
    assert refused >= 20


@pytest.mark.parametrize("file", FILES)
def test_names_tell_their_project(file):
    contents = read_file(DATA / file)
    for name in FILES[file][0]:
        contents = contents[name]
    names = contents.state_dict() if isinstance(contents, PickledModule) else contents
    assert nearest(names) == f"The names are nearest to those of {FILES[file][3]}."
    assert nearest([f"module.{name}" for name in list(names)[1:]]) == nearest(names)


def test_names_of_nobody():
    assert nearest(["a", "b.weight"]) is None and nearest([]) is None
    assert "Tacotron 2, an unsupported architecture; supported are" in nearest(["encoder.x", "decoder.y"])


def test_missing_names_are_ten(tmp_path):
    file = "wavenet-r9y9-a/checkpoint_step001000000_ema.pth"
    keep = lambda state: {k: v for k, v in state.items() if "conv1x1_skip" not in k or k.startswith("conv_layers.0.")}
    path, _ = changed(tmp_path, file, keep)
    with pytest.raises(IncompatibleCheckpointError) as info:
        fastvoc.load(path)
    words = str(info.value)
    assert words.count("conv1x1_skip") == 10 and "nearest to those of r9y9's WaveNet" in words


# ---- archives and heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, mode", [("x/../../etc/passwd", 0o644), ("x/data/1", stat.S_IFLNK | 0o777)])
def test_entries_that_point_elsewhere(tmp_path, name, mode):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr(entry, b"/etc/passwd")
    with pytest.raises(CorruptCheckpointError, match="points out of the archive"):
        read_file(tmp_path / "x.pt")


def test_a_storage_with_another_checksum(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "x.pt")
    whole = bytearray((tmp_path / "x.pt").read_bytes())
    whole[whole.index(np.float32(500).tobytes())] ^= 1
    (tmp_path / "x.pt").write_bytes(whole)
    with pytest.raises(CorruptCheckpointError, match="CRC"):
        read_file(tmp_path / "x.pt")


@pytest.fixture
def folder(tmp_path):
    fastvoc.load(DATA / "nv-wavenet-a" / "model.pt").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_safetensors_heads(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"a{i}": entry for i in range(100_000)}).encode()
    overflowing = json.dumps({"a": {**entry, "shape": [1 << 40, 1 << 40]}}).encode()
    two = {"a": {**entry, "shape": [2], "data_offsets": [0, 8]}, "b": {**entry, "shape": [1], "data_offsets": [4, 8]}}
    overlapping = json.dumps(two).encode()
    for head, data in ((overflowing, b""), (overlapping, bytes(8)), (b"{}" * 9, b""), (b"[" * 5000, b""), (many, b"")):
        weights.write_bytes(struct.pack("<Q", len(head)) + head + data)
        with pytest.raises(ResourceLimitError if head is many else CorruptCheckpointError):
            fastvoc.load(folder)
    for damaged in (b"", whole[:100], struct.pack("<Q", 1 << 63) + whole[8:], whole[:-4], whole + b"x"):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            fastvoc.load(folder)


def test_infinite_weights_of_a_folder(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["first_conv.bias"][0] = torch.inf
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity in first_conv.bias .*--allow-nan"):
        fastvoc.load(folder)


# ---- the source ----------------------------------------------------------------------------------------------------


def test_nothing_else_unpickles():
    """Whatever is read goes through the interpreter of pickles, through safetensors, or through weights_only."""
    package = Path(fastvoc.__file__).parent
    calls = r"pickle\.loads?\(|Unpickler\(|yaml\.load\(|allow_pickle=True|extractall\(|shell=True"
    dangerous = re.compile(calls + r"|(?<![.\w])(eval|exec)\(")
    for source in package.rglob("*.py"):
        text = source.read_text()
        assert not dangerous.search(text), source
        assert text.count("torch.load(") == text.count("weights_only=True"), source


# ---- configs -------------------------------------------------------------------------------------------------------

BAD_VALUES = [10**9, -1, 0, "x", None, [], [1], {}, 1.5, True, [10**9] * 3, 1e300, [[1]], [1] * 100_000]


@pytest.mark.parametrize("file", [
    "wavenet-r9y9-a/checkpoint_step001000000_ema.pth", "waveglow-a/waveglow_tiny_legacy.pt", "diffwave-philsyn-a/1000000.pkl",
    "pwg-a/checkpoint-400000steps.pkl", "clarinet-a/student_checkpoint_step000210000_ema.pth",
])  # fmt: skip
def test_every_value_of_a_config_is_checked(tmp_path, file):
    """Before memory is taken for it: a model, or an error of ours, whatever one value is."""
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    options = {name: (DATA / file).parent / value for name, value in FILES[file][1].items()}
    model = fastvoc.load(DATA / file, **options)
    model.save_pretrained(tmp_path)
    assert fastvoc.load(tmp_path).config == model.config
    values, refused = json.loads((tmp_path / "config.json").read_text()), 0
    names = [name for name in values if name != "family"]
    for i, name in enumerate(names):
        for bad in BAD_VALUES[i % 2 :: 2]:
            (tmp_path / "config.json").write_text(json.dumps({**values, name: bad}))
            try:
                fastvoc.load(tmp_path)
            except (ConfigError, CheckpointError) as fault:
                refused += name in str(fault) or isinstance(fault, IncompatibleCheckpointError)
    assert refused > 3 * len(names)


@pytest.mark.parametrize("changes, words", [
    ({"residual_channels": "24"}, "config.json: residual_channels must be int, got '24'"),
    ({"dilations": [1, 2, "4"]}, r"dilations must be list\[int\] \| None, got \[1, 2, '4'\]"),
    ({"residual_channels": 10**9}, "residual_channels must be at most 67108864"),
    ({"upsample_params": {"upsample_scales": [4, 10**12]}}, r"upsample_params.upsample_scales\[1\] must be at most"),
    ({"layers": 5000}, "layers must be at most 4096"),
    ({"gate_channels": 40_000_000}, "the config makes it"),  # 50 GB, of which none is taken
    ({"cin_pad": -3}, "its values make no model"),
])  # fmt: skip
def test_config_values_are_named(tmp_path, changes, words):
    fastvoc.load(DATA / "wavenet-r9y9-a").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises((ConfigError, IncompatibleCheckpointError), match=words):
        fastvoc.load(tmp_path)


@pytest.mark.parametrize("name, value", [("gain", 0), ("gain", "x"), ("preemphasis", [1]), ("highpass", None), ("a", 1)])
def test_preprocessing_values(folder, name, value):
    fastvoc.load(DATA / "wavenet-r9y9-a").save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ConfigError):
        fastvoc.load(folder)
