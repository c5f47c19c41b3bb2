"""WaveGlow's checkpoints: every layout ends as the same model; what is stale or unused is ignored; what is wrong is said.

glow_old's couplings are compared with their definition, computed here from the upstream's parameters.
"""

import collections
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastvoc
from fastvoc.checkpoints import read_file
from fastvoc.checkpoints.waveglow import canonical
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import CheckpointError, ConfigError, IncompatibleCheckpointError
from tests.goldens import Golden

torch.set_num_threads(1)
GOLDEN = Golden("waveglow-a")
FILE = GOLDEN.path("waveglow_256channels_a.pt")
CONFIG = {**GOLDEN.meta["hyperparameters"]["waveglow_config"]}


@pytest.fixture(scope="module")
def newest():
    """The state_dict of the newest layout, with weight norm."""
    return read_file(FILE)["model"].state_dict()


def rows(state, old, new, parts):
    """The entries of convolution `old` as those of new[0], new[1], …, which have parts[i] of its rows; weight norm is per row."""
    out = {}
    for kind in ("bias", "weight_g", "weight_v", "weight"):
        if f"{old}.{kind}" in state:
            for name, piece in zip(new, state[f"{old}.{kind}"].split(parts), strict=True):
                out[f"{name}.{kind}"] = piece.clone()
    return out


def layout(state, number):
    """The same weights as the code of another year named them."""
    out = {}
    for key, value in state.items():
        if not (".cond_layer." in key or (number == 1 and ".res_skip_layers." in key)):
            out[key] = value
    C, layers = 32, range(3)
    for k in range(4):
        pre = f"WN.{k}."
        out |= rows(state, f"{pre}cond_layer", [f"{pre}cond_layers.{i}" for i in layers], [2 * C] * 3)
        if number == 1:
            for i in layers:
                names = [f"{pre}res_layers.{i}", f"{pre}skip_layers.{i}"] if i < 2 else [f"{pre}skip_layers.{i}"]
                out |= rows(state, f"{pre}res_skip_layers.{i}", names, [C] * len(names))
    return out


def spelled(state):
    """With the weight norm of torch.nn.utils.parametrizations."""
    names = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    out = {}
    for key, value in state.items():
        end = next((n for n in names if key.endswith(n)), "")
        out[key.removesuffix(end) + names.get(end, "")] = value
    return out


def infer(model):
    t = lambda name: GOLDEN.tensor(f"infer_{name}")
    return model.infer(t("mel"), sigma=float(GOLDEN["infer_sigma"]), noise=[t("z_0"), t("z_1")])


def saved(tmp_path, contents):
    torch.save(contents, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def stale(state):
    """Plain weights that the last forward pass left beside weight_g and weight_v."""
    return {**state, **{k.removesuffix("_v"): torch.randn_like(v) for k, v in state.items() if k.endswith(".weight_v")}}


VARIANTS = {
    "until 2018": lambda s: layout(s, 1),
    "until 2019": lambda s: layout(s, 2),
    "since 2019": lambda s: s,
    "folded": fold_weight_norm,
    "folded, until 2018": lambda s: fold_weight_norm(layout(s, 1)),
    "new weight norm": spelled,
    "half folded": lambda s: {k: fold_weight_norm(s).get(k, v) for k, v in s.items()},
    "stale weights": stale,
    "one day of 2018": lambda s: {**layout(s, 2), **{k: v for k, v in layout(s, 1).items() if ".skip_layers." in k}},
    "W_inverse": lambda s: {**s, "convinv.0.W_inverse": torch.zeros(8, 8, 1).half()},
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "float64": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dicts(tmp_path, newest, variant):
    path = saved(tmp_path, VARIANTS[variant](newest))
    GOLDEN.check("infer_audio", infer(fastvoc.load(path, coupling="standard")))


def deep_learning_examples(state, **changes):
    inside = {}
    for key, value in layout(state, 2).items():
        first, _, rest = key.partition(".")
        inside[f"module.{first}.module.1.{rest}" if first == "WN" else f"module.{key}"] = value
    config = {**CONFIG, "WN_config": {k: v for k, v in CONFIG["WN_config"].items()}, **changes}
    return {"epoch": 3, "cuda_rng_state_all": torch.zeros(4, dtype=torch.uint8), "config": config, "state_dict": inside,
            "optimizer": {"state": {}, "param_groups": []}}  # fmt: skip


def test_deep_learning_examples(tmp_path, newest):
    model = fastvoc.load(saved(tmp_path, deep_learning_examples(newest)))
    GOLDEN.check("infer_audio", infer(model))
    assert not model.config.alternating
    with pytest.raises(IncompatibleCheckpointError, match="n_early_every is 2 in the weights, 4 beside them"):
        fastvoc.load(saved(tmp_path, deep_learning_examples(newest, n_early_every=4)))


def test_the_sizes_come_from_the_weights(newest):
    config = fastvoc.load(FILE).config
    found = {name: getattr(config, name) for name in CONFIG if name != "WN_config"}
    assert found == {k: v for k, v in CONFIG.items() if k != "WN_config"}
    assert (config.n_layers, config.n_channels, config.kernel_size) == (3, 32, 3)
    assert (config.upsample_kernel, config.upsample_stride, config.alternating) == (1024, 256, False)


def test_mel_convention_and_hop(tmp_path, newest, caplog):
    model = fastvoc.load(FILE)
    assert (model.sample_rate, model.mel_config.fmax, model.mel_config.n_mels) == (22050, 8000, 4)
    other = fastvoc.load(saved(tmp_path, newest), coupling="standard", hop_length=300)
    assert other.hop_length == 300 and other.mel_config is None and "the hop is 300" in caplog.text


def test_canonical_is_differentiable_in_every_layout(newest):
    gradients = []
    for variant in ("since 2019", "until 2019", "until 2018"):
        state = {k: v.clone().requires_grad_() for k, v in VARIANTS[variant](newest).items()}
        total = sum((w.sin() * torch.arange(w.numel()).view(w.shape)).sum() for w in canonical(state).values())
        leaves = [state[k] for k in ("WN.1.start.weight_g", "WN.2.in_layers.1.bias", "upsample.weight")]
        gradients.append(torch.autograd.grad(total, leaves))
    assert all(g.any() for g in gradients[0])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other))


# ---- Pickled modules -------------------------------------------------------------------------------------------------


def pickled(monkeypatch, state, class_name, strides=(256,), **attributes):
    """A module object of these parameters, whose class has this name."""
    module_name, _, name = class_name.rpartition(".")
    fake = types.ModuleType(module_name)
    cls = type(name, (nn.Module,), {"__module__": module_name, "__qualname__": name})
    setattr(fake, name, cls)
    parts = module_name.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    monkeypatch.setitem(sys.modules, module_name, fake)
    root = cls()
    for key, value in state.items():
        at = root
        *path, last = key.split(".")
        for step in path:
            if step not in at._modules:
                at._modules[step] = nn.Module()
            at = at._modules[step]
        at._parameters[last] = nn.Parameter(value)
    root._modules["upsample"].stride = strides
    root.__dict__.update(attributes)
    return root


def by_definition(state, mel, noise, sigma, alternating):
    """NVIDIA's infer, from the specification: everything in float64."""
    s = {k: v.double() for k, v in fold_weight_norm(state).items()}
    cond = F.conv_transpose1d(mel.double(), s["upsample.weight"], s["upsample.bias"], stride=256)[:, :, : 256 * mel.shape[2]]
    B, M, N = cond.shape
    cond = cond.unflatten(2, (N // 8, 8)).permute(0, 1, 3, 2).reshape(B, M * 8, N // 8)
    conv = lambda x, name, **how: F.conv1d(x, s[name + ".weight"], s.get(name + ".bias"), **how)
    x, draws = noise[0].double() * sigma, [z.double() * sigma for z in noise[1:]]
    for k in reversed(range(4)):
        halves = x.chunk(2, 1)
        a, b = halves[::-1] if alternating and k % 2 else halves
        h, out, p = conv(a, f"WN.{k}.start"), 0.0, f"WN.{k}."
        for i in range(3):
            g = conv(h, f"{p}in_layers.{i}", dilation=2**i, padding=2**i)
            g = g + conv(cond, f"{p}cond_layer").chunk(3, 1)[i]
            g = torch.tanh(g[:, :32]) * torch.sigmoid(g[:, 32:])
            rs = conv(g, f"{p}res_skip_layers.{i}")
            out = out + rs[:, -32:]
            h = h + rs[:, :32]
        t, log_s = conv(out, f"{p}end").chunk(2, 1)
        b = (b - t) / torch.exp(log_s)
        x = torch.cat([b, a] if alternating and k % 2 else [a, b], 1)
        x = F.conv1d(x, s[f"convinv.{k}.conv.weight"][:, :, 0].inverse()[:, :, None])
        if k == 2:
            x = torch.cat([draws.pop(0), x], 1)
    return x.transpose(1, 2).flatten(1)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("new_file", [True, False])
@pytest.mark.parametrize(
    ("class_name", "number", "alternating"),
    [
        ("glow.WaveGlow", 3, False), ("glow.WaveGlow", 1, False), ("glow_old.WaveGlow", 1, True), ("glow_old.WaveGlow", 2, True),
        ("glow_old.WaveGlow", 3, True), ("waveglow.glow_old.WaveGlow", 1, True), ("tacotron2.waveglow.glow.WaveGlow", 2, False),
    ],
)  # fmt: skip
def test_the_class_name_decides_on_the_couplings(tmp_path, monkeypatch, newest, class_name, number, alternating, new_file):
    state = newest if number == 3 else layout(newest, number)
    module = pickled(monkeypatch, state, class_name, n_early_every=2, n_early_size=2, W_inverse=torch.zeros(8, 8, 1))
    torch.save({"model": module, "iteration": 1}, tmp_path / "x.pt", _use_new_zipfile_serialization=new_file)
    monkeypatch.delitem(sys.modules, class_name.rpartition(".")[0])
    model = fastvoc.load(tmp_path / "x.pt")
    t = lambda name: GOLDEN.tensor(f"infer_{name}")
    sigma = float(GOLDEN["infer_sigma"])
    want = by_definition(newest, t("mel"), [t("z_0"), t("z_1")], sigma, alternating)
    assert model.config.alternating == alternating
    assert torch.allclose(infer(model).double(), want, rtol=0, atol=2e-5) and want.std() > 0.5
    assert not torch.allclose(infer(fastvoc.load(FILE)).double(), want, atol=0.1) == alternating


def test_the_definition_is_upstreams(newest):
    t = lambda name: GOLDEN.tensor(f"infer_{name}")
    GOLDEN.check("infer_audio", by_definition(newest, t("mel"), [t("z_0"), t("z_1")], float(GOLDEN["infer_sigma"]), False))


def test_a_module_alone_and_its_own_hop(tmp_path, monkeypatch, newest):
    torch.save(pickled(monkeypatch, newest, "glow.WaveGlow", strides=(200,)), tmp_path / "x.pt")
    assert fastvoc.load(tmp_path / "x.pt").hop_length == 200


def test_the_option_overrules_the_class_name(tmp_path, monkeypatch, newest):
    torch.save({"model": pickled(monkeypatch, newest, "glow.WaveGlow")}, tmp_path / "x.pt")
    assert fastvoc.load(tmp_path / "x.pt", coupling="alternating").config.alternating


def test_no_early_output(tmp_path):
    """Two flows of a model with an early output every four: the shapes do not show it, the module's attributes do."""
    assert fastvoc.load(GOLDEN.path("waveglow_tiny_legacy.pt")).config.n_early_every == 4
    state = read_file(GOLDEN.path("waveglow_tiny_legacy.pt"))["model"].state_dict()
    model = fastvoc.load(saved(tmp_path, state), coupling="standard")
    assert model.config.channels == [4, 4] and len(model.noise_shapes(1, 5)) == 1


# ---- Bad files -------------------------------------------------------------------------------------------------------


def changed(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


def test_weights_alone_need_the_order_of_couplings(tmp_path, newest):
    path = saved(tmp_path, newest)
    with pytest.raises(ConfigError, match='do not tell the order.*coupling="alternating".*coupling="standard"'):
        fastvoc.load(path)
    with pytest.raises(ConfigError, match="coupling: got 'old', expected one of"):
        fastvoc.load(path, coupling="old")
    with pytest.raises(ConfigError, match="unknown option 'order'"):
        fastvoc.load(path, order=1)


@pytest.mark.parametrize("weight", [torch.zeros(6, 6, 1), torch.ones(6, 6, 1)])
def test_singular_convolution(tmp_path, newest, weight):
    path = saved(tmp_path, changed(newest, convinv__2__conv__weight=weight))
    with pytest.raises(CheckpointError, match="convinv.2: .*6 × 6 matrix is singular"):
        fastvoc.load(path, coupling="standard")


def test_nan(tmp_path, newest):
    bias = newest["WN.1.end.bias"].clone()
    bias[3] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        fastvoc.load(saved(tmp_path, changed(newest, WN__1__end__bias=bias)), coupling="standard")


def test_missing_and_unexpected_weights(tmp_path, newest):
    load = lambda state: fastvoc.load(saved(tmp_path, state), coupling="standard")
    without = lambda part: {k: v for k, v in newest.items() if part not in k}
    with pytest.raises(IncompatibleCheckpointError, match=r"missing: WN.2.res_skip_layers.1.bias"):
        load(without("WN.2.res_skip_layers.1.bias"))
    with pytest.raises(IncompatibleCheckpointError, match=r"missing: WN.0.end.weight, WN.0.end.bias"):
        load(without("WN.0.end."))
    with pytest.raises(IncompatibleCheckpointError, match="unexpected: WN.0.extra"):
        load(changed(newest, WN__0__extra=torch.zeros(1)))
    with pytest.raises(IncompatibleCheckpointError, match="a weight is missing.*upsample.weight"):
        load(without("upsample.weight"))
    with pytest.raises(IncompatibleCheckpointError):
        load(changed(newest, WN__1__start__bias=torch.zeros(33)))
    with pytest.raises(IncompatibleCheckpointError, match="the flows have"):
        load(changed(newest, convinv__3__conv__weight=torch.eye(4)[..., None]))


def test_module_attributes_that_contradict(tmp_path, monkeypatch, newest):
    torch.save({"model": pickled(monkeypatch, newest, "glow.WaveGlow", n_group=16)}, tmp_path / "x.pt")
    with pytest.raises(IncompatibleCheckpointError, match="n_group is 8 in the weights, 16 beside them"):
        fastvoc.load(tmp_path / "x.pt")


def test_other_things_are_not_taken_for_it(tmp_path):
    for contents in ({"model": {}}, {1: 2}, [], {"model": collections.OrderedDict(x=torch.zeros(1))}, {"config": 3}):
        with pytest.raises(IncompatibleCheckpointError, match="no known layout"):
            fastvoc.load(saved(tmp_path, contents))
