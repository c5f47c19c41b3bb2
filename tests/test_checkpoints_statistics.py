"""Statistics and settings beside a checkpoint: every public format to the same numbers, every hostile one to its error."""

import os
import pickle
import shutil
import sys
import types
import zlib

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc.checkpoints.statistics import read_statistics
from fastvoc.checkpoints.yaml_config import read_yaml
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    ResourceLimitError,
    UnsafeCheckpointError,
)
from tests.goldens import Golden

MEAN, SCALE = np.linspace(-3, -1, 7), np.linspace(0.5, 1.5, 7)


@pytest.fixture(scope="module")
def r9y9():
    return Golden("wavenet-r9y9-a")


def written(path, mean=MEAN, scale=SCALE):
    if path.suffix == ".npy":
        np.save(path, np.stack([mean, scale]))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["mean"], file["scale"] = mean, scale
    return path


@pytest.mark.parametrize("name", ["stats.npy", "stats.h5"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_formats(tmp_path, name, dtype):
    path = written(tmp_path / name, MEAN.astype(dtype), SCALE.astype(dtype))
    assert read_statistics(path, 7) == (tuple(MEAN.astype(dtype).tolist()), tuple(SCALE.astype(dtype).tolist()))


@pytest.mark.parametrize("packed", [lambda data: data, zlib.compress])
def test_joblib_of_the_public_recipe(tmp_path, r9y9, packed):
    before = set(sys.modules)
    data = r9y9.path("meanvar.joblib").read_bytes()
    (tmp_path / "x.joblib").write_bytes(packed(data))
    mean, scale = read_statistics(tmp_path / "x.joblib", 80)
    assert np.array_equal(mean, r9y9["meanvar_mean"]) and np.array_equal(scale, r9y9["meanvar_scale"])
    assert not {"joblib", "sklearn"} & {name.partition(".")[0] for name in set(sys.modules) - before}


def test_the_r9y9_model_normalises_as_upstream(r9y9):
    mel = fastvoc.load(r9y9.path("checkpoint_step001000000_ema.pth")).mel_config
    got = mel.normalise(r9y9.tensor("mel_raw", torch.float64).T).T
    torch.testing.assert_close(got.float(), r9y9.tensor("mel_normalised"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["stats.npy", "stats.h5", "meanvar.joblib"])
def test_another_number_of_bands(tmp_path, r9y9, name):
    path = tmp_path / name
    if path.suffix == ".joblib":
        shutil.copy(r9y9.path("meanvar.joblib"), path)
    else:
        written(path)
    with pytest.raises(CheckpointError, match="expected floats"):
        read_statistics(path, 6)


@pytest.mark.parametrize("name", ["stats.npy", "stats.h5"])
@pytest.mark.parametrize("scale", [np.zeros(7), np.full(7, np.nan), np.full(7, np.inf), -SCALE])
def test_scales_that_cannot_be(tmp_path, name, scale):
    with pytest.raises(CheckpointError, match="scale"):
        read_statistics(written(tmp_path / name, scale=scale), 7)


@pytest.mark.parametrize("name", ["stats.npy", "stats.h5", "meanvar.joblib"])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.6, 0.99])
def test_truncated(tmp_path, r9y9, name, kept):
    path = tmp_path / name
    whole = (r9y9.path(name) if path.suffix == ".joblib" else written(path)).read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        read_statistics(path, 80 if path.suffix == ".joblib" else 7)


def test_unknown_kind_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.checkpoints.statistics.MAX_BYTES", 1 << 20)
    (tmp_path / "stats.txt").write_text("1 2")
    with pytest.raises(ConfigError, match=r"\.npy, \.h5"):
        read_statistics(tmp_path / "stats.txt", 2)
    with open(tmp_path / "stats.npy", "wb") as file:
        file.truncate(1 << 21)
    with pytest.raises(ResourceLimitError):
        read_statistics(tmp_path / "stats.npy", 2)
    (tmp_path / "x.joblib").write_bytes(zlib.compress(bytes(3 << 20)))
    with pytest.raises(ResourceLimitError, match="unpack"):
        read_statistics(tmp_path / "x.joblib", 2)


def test_objects_in_npy(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptCheckpointError, match="Python objects"):
        read_statistics(tmp_path / "x.npy", 7)


def test_h5_of_another_shape(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["mean"] = MEAN
    with pytest.raises(CheckpointError, match="no dataset 'scale'; it holds .*mean"):
        read_statistics(tmp_path / "x.h5", 7)
    written(tmp_path / "other.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["scale"] = h5py.ExternalLink("other.h5", "scale")
    with pytest.raises(CheckpointError, match="no dataset 'scale'"):
        read_statistics(tmp_path / "x.h5", 7)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["mean"], _ = MEAN, file.create_dataset("scale", (1 << 40,), "f4")
    with pytest.raises(CheckpointError, match="1099511627776"):
        read_statistics(tmp_path / "y.h5", 7)


class Call:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_code_in_joblib(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.joblib").write_bytes(pickle.dumps(Call()))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        read_statistics(tmp_path / "x.joblib", 7)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attributes, words", [({"mean_": MEAN}, "no mean_ and scale_"), ({}, "no mean_ and scale_")])
def test_another_scaler(tmp_path, monkeypatch, attributes, words):
    """A plain pickle of a StandardScaler is read as well; one without statistics is said to have none."""
    module = types.ModuleType("sklearn.preprocessing._data")
    module.StandardScaler = type("StandardScaler", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.preprocessing", types.ModuleType("sklearn.preprocessing"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scaler = module.StandardScaler()
    scaler.__dict__ |= attributes
    path = tmp_path / "x.joblib"
    path.write_bytes(pickle.dumps(scaler))
    with pytest.raises(CheckpointError, match=words):
        read_statistics(path, 7)
    for protocol in (2, 4):
        scaler.__dict__ |= {"mean_": MEAN, "scale_": SCALE.astype(">f4"), "n": np.int64(3)}
        path.write_bytes(pickle.dumps(scaler, protocol))
        assert read_statistics(path, 7) == (tuple(MEAN.tolist()), tuple(SCALE.astype("f4").tolist()))


# ---- YAML ----------------------------------------------------------------------------------------------------------


def test_yaml(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "config.yml"
    path.write_text("a: {b: [4, 4], c: 1.0e-3}\nbetas: !!python/tuple [0.8, !!python/tuple [1, 2]]\nd: null  # x\n")
    assert read_yaml(path) == {"a": {"b": [4, 4], "c": 1e-3}, "betas": (0.8, (1, 2)), "d": None}


@pytest.mark.parametrize("text, error, words", [
    ("a: !!python/object/apply:os.system ['touch ran']", UnsafeCheckpointError, "python/object/apply:os.system, line 1"),
    ("a: !!python/object/new:type [x]", UnsafeCheckpointError, "object/new:type"),
    ("a: !!python/name:os.system ''", UnsafeCheckpointError, "python/name:os.system"),
    ("a: !!python/module:os ''", UnsafeCheckpointError, "python/module:os"),
    ("- 1\n- 2", ConfigError, "mapping, not a list"),
    ("", ConfigError, "mapping, not a NoneType"),
    ("a: [1", ConfigError, "no valid YAML"),
    ("a: !foo 1", ConfigError, "no valid YAML"),
    ("{a: b}: c", ConfigError, "no valid YAML"),
    ("a: " + "[" * 5000, ConfigError, "no valid YAML"),
    ("a: &a {x: 1}\nb: {<<: [*a, *a]}", ConfigError, "merge keys"),
    ("a: " + "x" * (1 << 20), ResourceLimitError, "1048576"),
    ("a: \x00", ConfigError, "no valid YAML"),
])  # fmt: skip
def test_hostile_yaml(tmp_path, monkeypatch, text, error, words):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(error, match=words):
        read_yaml(tmp_path / "config.yml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("package, call", [("yaml", read_yaml), ("h5py", lambda path: read_statistics(path, 7))])
def test_missing_packages_are_named(tmp_path, monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(ImportError, match="pip install (pyyaml|h5py)"):
        call(tmp_path / "x.h5")
