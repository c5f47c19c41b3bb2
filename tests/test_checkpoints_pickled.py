"""Module objects pickled whole: read as plain data, named as torch names them, with nothing imported and nothing run."""

import io
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvoc.checkpoints import read_file
from fastvoc.checkpoints.unpickle import CONSTRUCTORS, PickledModule, unpickle
from fastvoc.errors import CorruptCheckpointError, ResourceLimitError, UnsafeCheckpointError

torch.set_num_threads(1)
DATA = Path(__file__).parent / "data"


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 2))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.arange(4), persistent=False)
        self.register_parameter("none", None)
        self.tensor = torch.ones(2)


class WaveGlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.size = nn.Linear(2, 2), 5
        self.list = nn.ModuleList([Inner(), Inner()])
        self.tied = self.list[0]


@pytest.fixture
def upstream(monkeypatch):
    """The classes as if they were defined in the upstream's glow_old.py."""
    module = types.ModuleType("glow_old")
    for cls in (WaveGlow, Inner):
        monkeypatch.setattr(cls, "__module__", "glow_old")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "glow_old", module)
    return module


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_state_dict_is_named_as_torch_names_it(tmp_path, upstream, monkeypatch, new):
    model = upstream.WaveGlow()
    torch.save({"model": model, "iteration": 3}, tmp_path / "x", _use_new_zipfile_serialization=new)
    monkeypatch.delitem(sys.modules, "glow_old")
    got = read_file(tmp_path / "x")["model"]
    assert isinstance(got, PickledModule) and got.class_name == "glow_old.WaveGlow" and got.attributes["size"] == 5
    state = got.state_dict()
    assert list(state) == list(model.state_dict()) and "list.1.conv.weight_g" in state and "tied.kept" in state
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value) and not state[name].requires_grad
    inner = got.attributes["_modules"]["list"].attributes["_modules"]["0"]
    assert inner is got.attributes["_modules"]["tied"] and torch.equal(inner.attributes["tensor"], torch.ones(2))
    assert "glow_old" not in sys.modules


@pytest.mark.parametrize("file, name, n", [
    ("waveglow-a/waveglow_256channels_a.pt", "glow.WaveGlow", 110),
    ("waveglow-a/waveglow_tiny_legacy.pt", "glow.WaveGlow", 44),
    ("nv-wavenet-a/wavenet_120000", "wavenet.WaveNet", 41),
])  # fmt: skip
def test_public_files(file, name, n):
    before = set(sys.modules)
    contents = read_file(DATA / file)
    model = contents["model"]
    state = model.state_dict()
    assert (model.class_name, len(state)) == (name, n) and type(contents["iteration"]) is int
    assert all(value.device.type == "cpu" and torch.isfinite(value).all() for value in state.values())
    # A plain weight beside g and v is no parameter, and does not show
    assert not any(f"{key.removesuffix('_g')}" in state for key in state if key.endswith("weight_g"))
    new = {module.partition(".")[0] for module in set(sys.modules) - before}
    assert not new & {"glow", "wavenet", "thnn", "sklearn"}


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_code_inside_a_module_is_refused(tmp_path, upstream, new):
    model = upstream.WaveGlow()
    model.list[1].hook = Call(os.system, f"touch {tmp_path / 'ran'}")
    torch.save({"model": model}, tmp_path / "x", _use_new_zipfile_serialization=new)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        read_file(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_methods_of_shells_are_never_called():
    """A state may hold names that Python's own Unpickler would look up and call."""
    shell = b"cglow\nWaveGlow\n)\x81"
    state = b"}(X\x0c\x00\x00\x00__setstate__cglow\nWN\nX\x06\x00\x00\x00appendK\x01u"
    value = unpickle(io.BytesIO(b"\x80\x02" + shell + state + b"b" + b"}b."), "x", {})
    assert value.class_name == "glow.WaveGlow" and value.attributes["__setstate__"].name == "glow.WN"
    with pytest.raises(ValueError, match="where a list belongs"):
        unpickle(io.BytesIO(b"\x80\x02" + shell + b"K\x01a."), "x", {})


def test_modules_that_hold_themselves():
    circle = PickledModule("glow.WN")
    circle.attributes["_modules"] = {"a": circle}
    with pytest.raises(ResourceLimitError, match="holds itself"):
        circle.state_dict()
    doubled = PickledModule("glow.WN")
    for _ in range(60):  # 2^60 modules in as many lines
        outer = PickledModule("glow.WN")
        outer.attributes["_modules"] = {"a": doubled, "b": doubled}
        doubled = outer
    with pytest.raises(ResourceLimitError, match="100000"):
        doubled.state_dict()


@pytest.mark.parametrize("attributes", [{"_modules": [1]}, {"_parameters": 3}, {"_modules": {"a": "x"}}])
def test_modules_of_another_shape(attributes):
    module = PickledModule("glow.WN")
    module.attributes.update(attributes)
    with pytest.raises(CorruptCheckpointError, match="glow.WN"):
        module.state_dict()


@pytest.mark.parametrize("hostile", [
    pytest.param(b"}K\x01\x85K\x02s", id="a tuple as a key"),
    pytest.param(b"r\xff\xff\xff\x7f", id="a memo of gigabytes"),
    pytest.param(b"\x82\x01", id="an extension"),
    pytest.param(b"\x8b\x64\x00\x00\x00" + b"\x7f" * 100, id="an integer of 800 bits"),
    pytest.param(b"X\xff\xff\xff\x7fabc", id="a string past the end"),
    pytest.param(b"Pstorage\n", id="a persistent id"),
])  # fmt: skip
def test_hostile_instructions(hostile):
    with pytest.raises((ValueError, IndexError)):
        unpickle(io.BytesIO(b"\x80\x02" + hostile + b"."), "x", {})


def test_plain_values_survive_every_protocol():
    value = {"a": [1, -2.5, "ü", b"\x00\xff", None, True, 2**100], "b": ({1, 2}, frozenset("x"), ()), 3: {"c": {}}}
    value["again"] = value["a"]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        got = unpickle(io.BytesIO(pickle.dumps(value, protocol)), "x", CONSTRUCTORS)
        assert got == value and got["again"] is got["a"]


def test_parameters_of_torch_0_4(tmp_path):
    """They name the class itself, where later ones name a function that makes one."""
    torch.save({"p": nn.Parameter(torch.arange(3.0))}, tmp_path / "x", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x").read_bytes()
    old = whole.replace(b"ctorch._utils\n_rebuild_parameter\n", b"ctorch.nn.parameter\nParameter\n")
    assert old != whole
    (tmp_path / "x").write_bytes(old)
    assert torch.equal(read_file(tmp_path / "x")["p"], torch.arange(3.0))
