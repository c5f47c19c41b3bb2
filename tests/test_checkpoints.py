"""Checkpoint files: every public layout loads to the same numbers, every hostile or broken file to the right error."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.checkpoints import load_checkpoint, read_file
from fastvoc.checkpoints.weight_norm import fold_weight_norm, strip_prefix
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    ResourceLimitError,
    UnsafeCheckpointError,
)
from fastvoc.models.wavenet import WaveNet

torch.set_num_threads(1)
DATA = Path(__file__).parent / "data"
LARGE = torch.randn(300, 300)  # past every limit for small files once it is repeated


def golden(case, *names):
    assert all((DATA / case / name).is_file() for name in names)
    return DATA / case


def signal_to_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


# ---- weight norm ---------------------------------------------------------------------------------------------------


def normed(state, name, spelling):
    """state with name's weight spelled as g and v, the same product."""
    weight = state.pop(f"{name}.weight")
    g = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    v = weight * torch.rand_like(g).add(0.5)
    g_name, v_name = {
        "old": ("weight_g", "weight_v"),
        "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    }[spelling]
    return {**state, f"{name}.{g_name}": g, f"{name}.{v_name}": v}


@pytest.mark.parametrize("shape", [(4, 3, 5), (6, 2, 1, 9), (7, 2)])
def test_weight_norm_spellings_agree_with_torch(shape):
    plain = {f"{n}.weight": torch.randn(shape) for n in ("a", "b", "c")}
    state = normed(normed(dict(plain), "a", "old"), "b", "new")
    state |= {"a.weight": torch.zeros(shape), "a.bias": torch.ones(2)}  # a stale weight, which must not count
    folded = fold_weight_norm(state)
    assert sorted(folded) == ["a.bias", "a.weight", "b.weight", "c.weight"]
    for name, weight in plain.items():
        torch.testing.assert_close(folded[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [torch.nn.Conv1d(3, 4, 5), torch.nn.ConvTranspose1d(3, 4, 5), torch.nn.Linear(3, 4)])
def test_weight_norm_of_torch_itself(layer):
    want = layer.weight.detach().clone()
    state = torch.nn.utils.parametrizations.weight_norm(torch.nn.Sequential(layer)[0]).state_dict(prefix="x.")
    torch.testing.assert_close(fold_weight_norm(state)["x.weight"], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("half", ["weight_g", "weight_v", "parametrizations.weight.original1"])
def test_half_a_weight_norm_pair(half):
    with pytest.raises(CorruptCheckpointError, match=r"x\..* is missing"):
        fold_weight_norm({f"x.{half}": torch.ones(2, 1, 1)})


def test_weight_norm_of_another_shape():
    with pytest.raises(CorruptCheckpointError, match="one factor per row"):
        fold_weight_norm({"x.weight_g": torch.ones(1), "x.weight_v": torch.ones(2, 3)})


def test_prefix_goes_only_where_all_have_it():
    assert list(strip_prefix({"module.a": 1, "module.b": 2}, "module.")) == ["a", "b"]
    assert list(strip_prefix({"module.a": 1, "b": 2}, "module.")) == ["module.a", "b"]


# ---- broken and hostile files --------------------------------------------------------------------------------------


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def saved(contents, **options):
    file = io.BytesIO()
    torch.save(contents, file, **options)
    return file.getvalue()


STATE = {"state_dict": {"a": LARGE}}


@pytest.mark.parametrize("contents, error, words", [
    (b"", CorruptCheckpointError, "empty"),
    (b"\n<!DOCTYPE html><html><body>404</body></html>", CorruptCheckpointError, "HTML page: the download failed"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", CorruptCheckpointError, "git lfs pull"),
    (b"hello, I am no checkpoint", CorruptCheckpointError, "no checkpoint"),
    (bytes(1000), CorruptCheckpointError, "no checkpoint"),
    (b"\x1f\x8b" + bytes(100), IncompatibleCheckpointError, "Unpack"),
    (bytes(257) + b"ustar" + bytes(600), IncompatibleCheckpointError, "Unpack"),
    (b"\x20" + bytes(7) + b'{"a":{}}' + bytes(50), IncompatibleCheckpointError, "safetensors"),
    (pickle.dumps({"a": 1}, 2), CorruptCheckpointError, "no checkpoint"),
])  # fmt: skip
def test_no_checkpoint(tmp_path, contents, error, words):
    (tmp_path / "x.pt").write_bytes(contents)
    with pytest.raises(error, match=words):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, new, kept):
    whole = saved(STATE, _use_new_zipfile_serialization=new)
    (tmp_path / "x.pt").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CorruptCheckpointError, match="cut off|damaged"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("new", [True, False])
def test_flipped_bytes_raise_only_our_errors(tmp_path, new):
    whole = saved({"state_dict": {"a": torch.arange(6.0), "b": [1, "x"]}}, _use_new_zipfile_serialization=new)
    generator, path = np.random.default_rng(0), tmp_path / "x.pt"
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[generator.integers(0, len(damaged), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        with pytest.raises(fastvoc.errors.FastvocError):
            load_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", ["zip", "stream", "pickle"])
@pytest.mark.parametrize("function, name", [(os.system, "posix.system"), (eval, "builtins.eval")])
def test_code_is_refused_and_named(tmp_path, container, function, name, protocol):
    marker = tmp_path / "ran"
    code = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    contents = {"state_dict": {"b": Call(function, code)}}
    if protocol:  # torch's storages have no name in protocol 0
        contents = {"a": LARGE, **contents}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": container == "zip"}
    bare = pickle.dumps({"b": contents["state_dict"]["b"]}, protocol)
    (tmp_path / "x.pkl").write_bytes(bare if container == "pickle" else saved(contents, **options))
    with pytest.raises(UnsafeCheckpointError, match=name.replace("builtins", "(__builtin__|builtins)")):
        load_checkpoint(tmp_path / "x.pkl")
    assert not marker.exists()


def rewritten(whole, change, compression=zipfile.ZIP_STORED):
    """The zip with data.pkl changed."""
    source, out = zipfile.ZipFile(io.BytesIO(whole)), io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name in source.namelist():
            archive.writestr(name, change(source.read(name)) if name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def test_zip_bomb(tmp_path):
    whole = rewritten(saved({"a": torch.zeros(4_000_000)}), lambda data: data, zipfile.ZIP_DEFLATED)
    assert len(whole) < 100_000
    (tmp_path / "x.pt").write_bytes(whole)
    with pytest.raises(ResourceLimitError, match="16000"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("new", [True, False])
def test_view_that_claims_more_than_the_file(tmp_path, new):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"a": torch.zeros(1).expand(1 << 40)}, _use_new_zipfile_serialization=new))
    with pytest.raises(ResourceLimitError):
        load_checkpoint(path)


def test_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.checkpoints.reading.MAX_ENTRIES", 3)
    (tmp_path / "x.pt").write_bytes(saved(STATE))
    with pytest.raises(ResourceLimitError, match="entries"):
        load_checkpoint(tmp_path / "x.pt")


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.checkpoints.reading.MAX_ENTRIES", 3)
    (tmp_path / "x.pt").write_bytes(saved([torch.ones(1) for _ in range(4)], _use_new_zipfile_serialization=False))
    with pytest.raises(ResourceLimitError, match="more than 3 tensors"):
        read_file(tmp_path / "x.pt")


def test_saved_on_another_machines_gpu(tmp_path):
    elsewhere = lambda data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7")
    for new in (True, False):
        whole = saved({"a": torch.arange(5.0)}, _use_new_zipfile_serialization=new)
        moved = rewritten(whole, elsewhere) if new else elsewhere(whole)
        assert b"cuda:7" in moved
        (tmp_path / "x.pt").write_bytes(moved)
        got = read_file(tmp_path / "x.pt")["a"]
        assert got.device.type == "cpu" and torch.equal(got, torch.arange(5.0))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.int16, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("new", [True, False])
def test_every_kind_of_number(tmp_path, kind, new):
    values = torch.arange(12).reshape(3, 4).to(kind)
    contents = {"t": values[1:, ::2], "empty": values[:0], "scalar": values[2, 3], "kind": kind, "size": values.shape}
    torch.save(contents, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    got = read_file(tmp_path / "x.pt")
    assert got["kind"] is kind and tuple(got["size"]) == (3, 4)
    for name in ("t", "empty", "scalar"):
        assert got[name].dtype == kind and got[name].stride() == contents[name].stride() and torch.equal(got[name], contents[name])


TEN, MANY = b"K\x0a\x85", b"M\x10\x27\x85"  # the shapes (10,) and (10000,)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("change", [
    lambda data: data.replace(TEN, MANY),  # more elements than the storage has
    lambda data: data.replace(b"cpuq\x06K\x0a", b"cpuq\x06M\x10\x27").replace(b"cpuq\x07K\x0a", b"cpuq\x07M\x10\x27"),
    lambda data: data.replace(TEN + b"q\x08K\1", TEN + b"q\x08K\x63").replace(TEN + b"q\x0aK\1", TEN + b"q\x0aK\x63"),
])  # fmt: skip
def test_storage_and_strides_that_lie(tmp_path, new, change):
    whole = saved({"a": torch.arange(10.0)}, _use_new_zipfile_serialization=new)
    hostile = rewritten(whole, change) if new else change(whole)
    assert hostile != (rewritten(whole, lambda data: data) if new else whole)
    (tmp_path / "x.pt").write_bytes(hostile)
    with pytest.raises(CorruptCheckpointError):
        read_file(tmp_path / "x.pt")


@pytest.mark.parametrize("new", [True, False])
def test_both_containers_read_alike(tmp_path, new):
    contents = {"t": torch.randn(3, 4).t(), "list": [torch.arange(3), 2, "x", None], "half": torch.ones(2).half()}
    (tmp_path / "x").write_bytes(saved(contents, _use_new_zipfile_serialization=new))
    got = read_file(tmp_path / "x")
    assert torch.equal(got["t"], contents["t"]) and torch.equal(got["list"][0], contents["list"][0])
    assert got["list"][1:] == [2, "x", None] and got["half"].dtype == torch.half


def test_script_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/m.py"):
            archive.writestr(name, b"x")
    with pytest.raises(IncompatibleCheckpointError, match="TorchScript"):
        load_checkpoint(tmp_path / "x.pt")


def test_unknown_layouts_say_what_they_hold(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {f"generator.{i}": torch.ones(1) for i in range(20)}}, path)
    with pytest.raises(IncompatibleCheckpointError, match="model, generator.0, .*generator.8 ….*r9y9") as info:
        load_checkpoint(path)
    assert "generator.9" not in str(info.value)
    torch.save({"state": {}, "param_groups": []}, path)
    with pytest.raises(IncompatibleCheckpointError, match="optimizer"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(IncompatibleCheckpointError, match="holds a list"):
        load_checkpoint(path)


# ---- an upstream's folder ------------------------------------------------------------------------------------------


def test_a_folder_with_one_checkpoint(tmp_path):
    _, path = r9y9_file(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    np.savez(tmp_path / "data.npz", a=np.ones(3))
    (tmp_path / "config.json").write_text('{"some": "upstream"}')  # ours names its family
    assert fastvoc.load(tmp_path).config == fastvoc.load(path).config
    torch.save({"mel": torch.ones(3)}, tmp_path / "mel.pt")  # a file of torch's that no reader takes
    assert fastvoc.load(tmp_path).config == fastvoc.load(path).config
    with pytest.raises(ConfigError, match="unknown option 'colour'"):
        fastvoc.load(tmp_path, colour=1)


def test_a_folder_with_averaged_weights(tmp_path):
    other, path = r9y9_file(tmp_path)
    averaged, _ = r9y9_file(tmp_path)
    path.rename(path.with_stem(path.stem + "_ema"))
    torch.save({"state_dict": other.state_dict()}, path)
    assert torch.equal(fastvoc.load(tmp_path).first_conv.weight, averaged.first_conv.weight)
    assert torch.equal(fastvoc.load(path).first_conv.weight, other.first_conv.weight)
    later, _ = r9y9_file(tmp_path)
    path.rename(path.with_stem("checkpoint_step000000010"))
    torch.save({"state_dict": other.state_dict()}, path.with_stem("checkpoint_step000000009"))
    assert torch.equal(fastvoc.load(tmp_path).first_conv.weight, later.first_conv.weight)


def test_folders_that_hold_several_or_none(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json of fastvoc, and no checkpoint"):
        fastvoc.load(tmp_path)
    torch.save({"conv_pre.weight": torch.ones(1), "ups.0.weight": torch.ones(1)}, tmp_path / "g_02500000")
    (tmp_path / "config.json").write_text('{"resblock": "1"}')
    with pytest.raises(IncompatibleCheckpointError, match="HiFi-GAN, an unsupported architecture; supported are.*WaveGlow"):
        fastvoc.load(tmp_path)
    _, path = r9y9_file(tmp_path)
    shutil.copy(path, path.with_name("another.pth"))
    with pytest.raises(ConfigError, match="several checkpoints: another.pth, checkpoint_step000000001.pth"):
        fastvoc.load(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["SpeechT5HifiGan"]}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"unsupported architecture \['SpeechT5HifiGan'\]; supported: .*wavenet"):
        fastvoc.load(tmp_path)


# ---- r9y9 ----------------------------------------------------------------------------------------------------------

SMALL = dict(
    out_channels=30, layers=4, stacks=2, residual_channels=6, gate_channels=8, skip_out_channels=5, kernel_size=3,
    cin_channels=7, cin_pad=1, upsample_conditional_features=True, upsample_params={"upsample_scales": [2, 3]},
    scalar_input=True,
)  # fmt: skip
HPARAMS = {
    **{key: value for key, value in SMALL.items() if key != "scalar_input"}, "input_type": "raw",
    "output_distribution": "Logistic", "upsample_net": "ConvInUpsampleNetwork", "gin_channels": -1, "n_speakers": 7,
    "preprocess": "preemphasis", "postprocess": "inv_preemphasis", "global_gain_scale": 0.55, "sample_rate": 16000,
    "fft_size": 512, "hop_size": 6, "win_length": None, "win_length_ms": -1.0, "num_mels": 7, "fmin": 70, "fmax": 7000,
    "dropout": 0.0, "batch_size": 8,
}  # fmt: skip


def r9y9_file(folder, hparams=(), contents=lambda state: {"state_dict": state, "global_step": 1}, **changes):
    model = WaveNet(**{**SMALL, **changes})
    torch.save(contents(model.state_dict()), folder / "checkpoint_step000000001.pth")
    if hparams is not None:
        (folder / "hparams.json").write_text(json.dumps({**HPARAMS, **changes, **dict(hparams)}))
    return model, folder / "checkpoint_step000000001.pth"


def same_config(got, want):
    """Up to defaults of the upsampler that the reader writes out."""
    params = {**got.config.upsample_params, **want.config.upsample_params}
    return got.config == dataclasses.replace(want.config, upsample_params=params)


def mixed(state):
    state = dict(state)
    for i, name in enumerate(sorted(key.removesuffix(".weight") for key in state if key.endswith(".weight"))):
        if i % 3 < 2 and "conv_in" not in name:
            state = normed(state, name, ("old", "new")[i % 3])
    return {"state_dict": {f"module.{key}": value for key, value in state.items()}, "optimizer": {"state": {}}}


@pytest.mark.parametrize("contents", [lambda state: state, lambda state: {"state_dict": dict(state)}, mixed])
def test_r9y9_layouts(tmp_path, contents):
    want, path = r9y9_file(tmp_path, contents=contents)
    got = fastvoc.load(path)
    assert same_config(got, want) and not got.training
    for name, weight in want.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], weight, rtol=1e-6, atol=1e-7)


def test_r9y9_preprocessing(tmp_path):
    np.save(tmp_path / "meanvar.npy", np.stack([np.arange(7.0), np.arange(1.0, 8.0)]))
    made = fastvoc.load(r9y9_file(tmp_path)[1]).preprocessing
    assert (made.preemphasis, made.gain) == (0.85, 0.55)
    mel = made.mel
    assert (mel.sample_rate, mel.n_fft, mel.hop_length, mel.win_length, mel.n_mels) == (16000, 512, 6, 512, 7)
    assert (mel.fmin, mel.fmax, mel.log, mel.floor) == (70, 7000, "log10", 1e-10)
    assert mel.mean == tuple(range(7)) and mel.scale == tuple(range(1, 8))
    times = {"preprocess": "", "hop_size": None, "frame_shift_ms": 12.5, "win_length_ms": 25.0, "fmax": None}
    made = fastvoc.load(r9y9_file(tmp_path, {**times, "global_gain_scale": 1.0})[1]).preprocessing
    assert made.mel.fmax == 8000
    assert (made.preemphasis, made.gain, made.mel.hop_length, made.mel.win_length) == (0.0, 1.0, 200, 400)
    np.save(tmp_path / "meanvar.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="meanvar.npy"):
        fastvoc.load(tmp_path / "checkpoint_step000000001.pth")


def test_r9y9_speakers_and_softmax(tmp_path):
    hparams = {"input_type": "mulaw-quantize", "use_speaker_embedding": False}
    changes = dict(out_channels=16, scalar_input=False, gin_channels=3, n_speakers=5, use_speaker_embedding=True)
    changes["start"] = 7.0  # upstream truncates when it quantises silence
    want, path = r9y9_file(tmp_path, hparams, **changes)
    got = fastvoc.load(path)
    assert same_config(got, want) and got.config.use_speaker_embedding and got.config.head == "softmax"
    mel = torch.randn(1, 7, 2)
    got_wav, want_wav = (m.eval().infer(mel, speaker=[4], temperature=0.0, threads=1) for m in (got, want))
    assert torch.equal(got_wav, want_wav) and got_wav.shape == (1, 12)


@pytest.mark.parametrize("changes", [
    dict(upsample_net="UpsampleNetwork", cin_pad=2), dict(upsample_conditional_features=False, cin_pad=0),
    dict(cin_channels=-1, upsample_conditional_features=False, cin_pad=0),
    dict(out_channels=2, output_distribution="Normal"),
    dict(upsample_params={"upsample_scales": [2, 2], "freq_axis_kernel_size": 3, "upsample_activation": "LeakyReLU"}),
    dict(gin_channels=4),
])  # fmt: skip
def test_r9y9_variants(tmp_path, changes):
    want, path = r9y9_file(tmp_path, **changes)
    got = fastvoc.load(path)
    assert list(got.state_dict()) == list(want.state_dict())
    for name in ("head", "dilations", "cin_channels", "gin_channels", "cin_pad"):
        assert getattr(got.config, name) == getattr(want.config, name)


@pytest.mark.parametrize("name", ["checkpoint_step000000001.json", "checkpoint_step000000001.pth.json"])
def test_r9y9_hparams_named_as_the_file(tmp_path, name):
    _, path = r9y9_file(tmp_path)
    (tmp_path / "hparams.json").rename(tmp_path / name)
    assert fastvoc.load(path).config.stacks == 2


@pytest.mark.parametrize("hparams, error, words", [
    (None, ConfigError, "layers=4, residual_channels=6.*hparams.json"),
    ({"stacks": None}, ConfigError, "stacks"),
    ({"stacks": 3}, ConfigError, "multiple of stacks"),
    ({"layers": 10**9}, IncompatibleCheckpointError, "layers is 4 in the weights, 1000000000 in hparams.json"),
    ({"residual_channels": 7}, IncompatibleCheckpointError, "residual_channels is 6 in the weights, 7"),
    ({"input_type": "mulaw-quantize"}, IncompatibleCheckpointError, "scalar_input"),
    ({"input_type": "flac"}, ConfigError, "input_type"),
    ({"upsample_params": {"upsample_scales": [2, 4]}}, IncompatibleCheckpointError, "upsample_scales"),
    ({"upsample_params": {"upsample_scales": [2, 3], "colour": 1}}, ConfigError, "colour"),
    ({"upsample_params": 4}, ConfigError, "upsample_params"),
    ({"sample_rate": "fast"}, ConfigError, "sample_rate"),
])  # fmt: skip
def test_r9y9_hparams_that_do_not_fit(tmp_path, hparams, error, words):
    _, path = r9y9_file(tmp_path, hparams)
    with pytest.raises(error, match=words):
        fastvoc.load(path)


@pytest.mark.parametrize("name, value, error, words", [
    ("conv_layers.2.conv1x1_skip.bias", None, IncompatibleCheckpointError, "missing: conv_layers.2.conv1x1_skip.bias"),
    ("first_conv.weight", None, IncompatibleCheckpointError, "first_conv.weight"),
    ("extra", torch.ones(1), IncompatibleCheckpointError, "unexpected: extra"),
    ("first_conv.bias", torch.full((6,), torch.nan), CheckpointError, "holds NaN or infinity in first_conv.bias"),
    ("first_conv.bias", torch.ones(6, dtype=torch.int64), IncompatibleCheckpointError, "int64"),
    ("first_conv.bias", torch.ones(7), IncompatibleCheckpointError, r"\(7,\).*\(6,\)"),
    ("conv_layers.0.conv.weight", torch.ones(2), IncompatibleCheckpointError, "rank"),
    ("conv_layers.0.conv.weight", 3, IncompatibleCheckpointError, "is a int"),
])  # fmt: skip
def test_r9y9_weights_that_do_not_fit(tmp_path, name, value, error, words):
    change = lambda state: {k: v for k, v in {**state, name: value}.items() if v is not None}
    _, path = r9y9_file(tmp_path, contents=change)
    with pytest.raises(error, match=words):
        fastvoc.load(path)


def test_r9y9_double_weights(tmp_path):
    want, path = r9y9_file(tmp_path, contents=lambda state: {key: value.double() for key, value in state.items()})
    got = fastvoc.load(path).state_dict()
    assert all(torch.equal(got[key], value) for key, value in want.state_dict().items())


def test_r9y9_golden(tmp_path):
    folder = golden("wavenet-r9y9-a", "checkpoint_step001000000_ema.pth", "hparams.json")
    model = fastvoc.load(folder / "checkpoint_step001000000_ema.pth")
    assert (model.config.layers, model.config.dilations, model.config.head) == (6, [1, 2, 4] * 2, "mol")
    assert model.preprocessing.gain == 0.55 and model.preprocessing.mel.hop_length == 256 == model.samples_per_frame
    io_file = golden("wavenet-r9y9-a", "io.npz") / "io.npz"
    with np.load(io_file) as data:
        x, c, want = (torch.from_numpy(data[name]) for name in ("fwd_x", "fwd_c", "fwd_logits"))
    with torch.no_grad():
        assert signal_to_error(model(x, c), want) > 120


# ---- nv-wavenet ----------------------------------------------------------------------------------------------------


def nv_contents(layers=5, R=4, S=6, A=16, max_dilation=4, prev=False, tanh=False):
    some = lambda *shape: torch.randn(shape) / shape[-1] ** 0.5
    return {
        "embedding_prev": some(A, R) if prev else torch.zeros(A, R), "embedding_curr": some(A, R),
        "conv_out_weight": some(A, S, 1), "conv_end_weight": some(A, A, 1),
        "dilate_weights": [some(2 * R, R, 2) for _ in range(layers)],
        "dilate_biases": [some(2 * R) for _ in range(layers)],
        "max_dilation": max_dilation, "res_weights": [some(R, R, 1) for _ in range(layers - 1)],
        "res_biases": [some(R) for _ in range(layers - 1)], "skip_weights": [some(S, R, 1) for _ in range(layers)],
        "skip_biases": [some(S) for _ in range(layers)], "use_embed_tanh": tanh,
    }  # fmt: skip


def nv_logits(w, past, cond):
    """nv_wavenet_reference.cpp, one utterance: past classes y(-2) y(-1) y(0) …, cond (L, 2R, T) -> (T, A)"""
    L, R, T = len(w["dilate_weights"]), w["embedding_curr"].shape[1], cond.shape[2]
    cycle = [2**i for i in range(20) if 2**i <= w["max_dilation"]]
    x = w["embedding_prev"][past[:T]] + w["embedding_curr"][past[1 : T + 1]]
    x, skip = (torch.tanh(x) if w["use_embed_tanh"] else x).t(), 0
    for i in range(L):
        d = cycle[i % len(cycle)]
        before = torch.cat([torch.zeros(R, d), x], 1)[:, :T]
        weight = w["dilate_weights"][i]
        a = weight[:, :, 0] @ before + weight[:, :, 1] @ x + w["dilate_biases"][i][:, None] + cond[i]
        z = torch.tanh(a[:R]) * torch.sigmoid(a[R:])
        skip = skip + w["skip_weights"][i][:, :, 0] @ z + w["skip_biases"][i][:, None]
        if i < L - 1:
            x = x + w["res_weights"][i][:, :, 0] @ z + w["res_biases"][i][:, None]
    return (w["conv_end_weight"][:, :, 0] @ (w["conv_out_weight"][:, :, 0] @ skip.relu()).relu()).t()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("prev, tanh", [(False, False), (True, False), (False, True), (True, True)])
def test_nv_wavenet_computes_as_its_reference(tmp_path, prev, tanh, new):
    torch.manual_seed(0)
    w = nv_contents(prev=prev, tanh=tanh)
    torch.save(w, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    model = fastvoc.load(tmp_path / "model.pt")
    assert model.config.dilations == [1, 2, 4, 1, 2] and model.config.front_kernel == 1 + prev
    T, silence = 24, 9
    cond, forced = torch.randn(2, 5, 8, T), torch.randint(0, 16, (2, T))
    past = torch.cat([torch.full((2, 2), silence), forced[:, :-1]], 1)
    want = torch.stack([nv_logits(w, past[b], cond[b]) for b in range(2)]).transpose(1, 2)
    for backend in ("cpu", "reference"):
        with fastvoc.backend(backend):
            got = model.infer(layer_conditioning=cond, forced=forced, initial=silence, threads=1)
        assert signal_to_error(got, want) > 110, backend
    # forward's own form of conditioning is by mel; without any it must agree as well
    x = torch.cat([torch.full((2, 1), silence), forced[:, :-1]], 1)
    want = torch.stack([nv_logits(w, past[b], torch.zeros(5, 8, T)) for b in range(2)]).transpose(1, 2)
    one_hot = torch.nn.functional.one_hot(x, 16).transpose(1, 2).float()
    with torch.no_grad():
        assert signal_to_error(model(x), want) > 110 and signal_to_error(model(one_hot), want) > 110
    model.save_pretrained(tmp_path / "folder")
    again = fastvoc.load(tmp_path / "folder")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("change, words", [
    (lambda w: w.pop("res_biases"), "missing: res_biases"),
    (lambda w: w["skip_weights"].pop(), "skip_weights is no list of 5"),
    (lambda w: w["skip_weights"].__setitem__(2, torch.ones(6, 5, 1)), r"2.conv1x1_skip.weight is \(6, 5, 1\)"),
    (lambda w: w["skip_weights"].__setitem__(2, "x"), r"skip_weights\[2\]' is a str"),
    (lambda w: w["dilate_weights"].__setitem__(0, torch.ones(8, 4, 3)), r"\(8, 4, 3\), expected \(2R, R, 2\)"),
    (lambda w: w.update(max_dilation=0), "max_dilation"),
    (lambda w: w.update(max_dilation="8"), "max_dilation"),
    (lambda w: w.update(conv_out_weight=torch.ones(3)), "conv_out_weight"),
    (lambda w: w.update(embedding_prev=torch.ones(3, 4)), "differ in shape"),
    (lambda w: w.update(dilate_weights=[], dilate_biases=[]), "0 layers"),
])  # fmt: skip
def test_nv_wavenet_that_does_not_fit(tmp_path, change, words):
    w = nv_contents()
    change(w)
    torch.save(w, tmp_path / "model.pt")
    with pytest.raises(IncompatibleCheckpointError, match=words):
        fastvoc.load(tmp_path / "model.pt")


def test_nv_wavenet_golden(tmp_path):
    folder = golden("nv-wavenet-a", "model.pt", "io.npz")
    shutil.copy(folder / "model.pt", tmp_path / "weights")  # the layout is in the file, not in its name
    model = fastvoc.load(tmp_path / "weights")
    assert model.config.dilations == [1, 2, 4, 8, 1, 2]
    with np.load(folder / "io.npz") as data:
        cond, noise = torch.from_numpy(data["cond_input"]), torch.from_numpy(data["ar_selectors"])[..., None]
        want = torch.from_numpy(data["ar_class"]).long()
    wav = model.infer(layer_conditioning=cond.permute(1, 2, 0, 3), noise=noise, initial=128, threads=1)
    assert torch.equal(mulaw_encode(wav, 256), want)


def test_golden_state_is_exact():
    folder = golden("nv-wavenet-a", "model.pt")
    w, state = read_file(folder / "model.pt"), fastvoc.load(folder / "model.pt").state_dict()
    assert torch.equal(state["first_conv.weight"][:, :, 0], w["embedding_curr"].t())
    for i in range(6):
        assert torch.equal(state[f"conv_layers.{i}.conv.weight"], w["dilate_weights"][i])
        assert torch.equal(state[f"conv_layers.{i}.conv1x1_skip.bias"], w["skip_biases"][i])
        want = w["res_weights"][i] if i < 5 else torch.zeros(16, 16, 1)
        assert torch.equal(state[f"conv_layers.{i}.conv1x1_out.weight"], want)
    assert not state["last_conv_layers.1.bias"].any() and not state["conv_layers.5.conv1x1_out.bias"].any()
