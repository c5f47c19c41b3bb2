"""ClariNet: teacher and student from upstream's files, against what ksw0306/ClariNet @ df31b4c computes from them."""

import copy

import pytest
import torch

import fastvoc
from fastvoc.checkpoints import clarinet, read_file
from fastvoc.errors import ConfigError, IncompatibleCheckpointError
from fastvoc.losses import gaussian_kl, gaussian_loss, log_scale_distance
from fastvoc.training.distillation import distill
from tests.devices import ISAS, running_on
from tests.goldens import Golden

TEACHER, STUDENT = "teacher_checkpoint_step000654321_ema.pth", "student_checkpoint_step000210000_ema.pth"
DIRECTIONS = {"qp": "reverse", "pq": "forward"}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def golden():
    return Golden("clarinet-a")


@pytest.fixture(scope="module")
def teacher(golden):
    return fastvoc.load(golden.path(TEACHER))


@pytest.fixture(scope="module")
def student(golden):
    return fastvoc.load(golden.path(STUDENT), teacher=golden.path(TEACHER))


def weights(golden, name):
    return read_file(golden.path(name))["state_dict"]


@torch.no_grad()
def test_teacher_forward(golden, teacher):
    out = teacher(golden.tensor("teacher_x"), golden.tensor("mel"))
    golden.check("teacher_out", out)
    golden.check("teacher_upsampled", teacher.upsample_net(golden.tensor("mel"))[:, ::16])
    wave = golden.tensor("teacher_x")[:, 0, 1:]
    golden.check("teacher_nll", gaussian_loss(out[:, :, :-1], wave, log_scale_min=-9.0, reduction="mean"))
    golden.check("distill_teacher_out", teacher(golden.tensor("student_x"), golden.tensor("mel")))


@pytest.mark.parametrize("isa", ISAS)
def test_teacher_generation(golden, teacher, isa):
    with running_on(isa):
        wave = teacher.infer(golden.tensor("gen_mel"), noise={"normal": golden.tensor("gen_eps")})
    golden.check("gen_samples", wave[:, None])


@torch.no_grad()
def test_student_forward(golden, student):
    x, mean, log_scale = student(golden.tensor("student_z")[:, 0], golden.tensor("mel"))
    golden.check("student_x", x[:, None])
    golden.check("student_mu_tot", mean[:, None])
    golden.check("student_logs_tot", log_scale[:, None])


def test_student_generation(golden, student):
    golden.check("student_generate", student.infer(golden.tensor("mel"), noise=golden.tensor("student_z")[:, 0])[:, None])


@torch.no_grad()
def test_float64(golden, teacher, student):
    """In float64 the same models agree to rounding: nothing in them is float32 by accident."""
    double = lambda name: golden.tensor(name, torch.float64)
    out = copy.deepcopy(teacher).double()(double("teacher_x"), double("mel"))
    # Weights are stored in float32 after weight norm was folded in float64: one float32 rounding remains
    assert torch.allclose(out, double("teacher_out_f64"), rtol=0, atol=2e-6)
    x, mean, _ = copy.deepcopy(student).double()(double("student_z")[:, 0], double("mel"))
    assert torch.allclose(x[:, None], double("student_x_f64"), rtol=0, atol=1e-6) and mean.dtype == torch.float64


@torch.no_grad()
def test_float64_weights_are_exact(golden, student):
    exact = {k: v.double() for k, v in weights(golden, STUDENT).items()}
    frame = {k: v.double() for k, v in weights(golden, TEACHER).items()}
    model, state = copy.deepcopy(student).double(), clarinet.canonical(exact, frame)
    args = golden.tensor("student_z", torch.float64)[:, 0], golden.tensor("mel", torch.float64)
    x, mean, log_scale = torch.func.functional_call(model, state, args)
    for got, name in ((x, "student_x"), (mean, "student_mu_tot"), (log_scale, "student_logs_tot")):
        assert torch.allclose(got[:, None], golden.tensor(f"{name}_f64"), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_distillation_step(golden, teacher, student, kind):
    """Losses, and gradients with regard to upstream's parameters with their weight norm in place."""
    parameters = {name: value.clone().requires_grad_() for name, value in weights(golden, STUDENT).items()}
    state = clarinet.canonical(parameters, weights(golden, TEACHER))
    z = golden.tensor("student_z")[:, 0].requires_grad_()

    run = lambda *args: torch.func.functional_call(student, state, args)
    wave = golden.tensor("teacher_x")[:, 0]
    loss = distill(student.config, teacher, golden.tensor("mel"), z, wave, run=run, direction=DIRECTIONS[kind])
    for part, name in {"kl": "kl", "regularisation": "reg", "spectral": "frame", "total": "total"}.items():
        golden.check(f"distill_{kind}_{name}", loss[part])
    names = [name.split("gradp:")[1] for name in golden.checked(f"distill_{kind}_gradp:")]
    assert len(names) == 3
    loss["total"].backward()
    golden.check(f"distill_{kind}_grad_z", z.grad[:, None])
    for name in names:
        golden.check(f"distill_{kind}_gradp:{name}", parameters[name].grad)
    assert all(p.grad is None for p in teacher.parameters())


def test_divergences(golden):
    q, p = (torch.cat([golden.tensor(f"kl_{x}_{a}") for x in ("mu", "logs")], 1).requires_grad_() for a in "qp")
    golden.check("kl_elements", gaussian_kl(q, p)[:, None])
    golden.check("kl_reg_elements", log_scale_distance(q, p)[:, None])
    golden.check("kl_mean", gaussian_kl(q, p, reduction="mean"))
    golden.check("kl_reg_mean", log_scale_distance(q, p, reduction="mean"))
    total = (gaussian_kl(q, p) + 4 * log_scale_distance(q, p)).mean()
    golden.check("kl_total", total)
    total.backward()
    for a, x in (("q", q), ("p", p)):
        golden.check(f"kl_grad_mu_{a}", x.grad[:, :1])
        golden.check(f"kl_grad_logs_{a}", x.grad[:, 1:])


@torch.no_grad()
def test_the_comparison_notices_one_weight(golden, teacher, student):
    wrong = copy.deepcopy(student)
    wrong.flows[1].stack.layers[2].conv.weight[3, 4, 1] += 0.01
    with pytest.raises(AssertionError):
        golden.check("student_x", wrong(golden.tensor("student_z")[:, 0], golden.tensor("mel"))[0][:, None])
    wrong = copy.deepcopy(teacher)
    wrong.first_conv.weight[3, 0, 5] += 0.01
    with pytest.raises(AssertionError):
        golden.check("teacher_out", wrong(golden.tensor("teacher_x"), golden.tensor("mel")))


def test_folder_holds_all_of_a_student(golden, student, tmp_path):
    student.save_pretrained(tmp_path)
    again = fastvoc.load(tmp_path)
    mel, z = golden.tensor("mel"), golden.tensor("student_z")[:, 0]
    assert torch.equal(again.infer(mel, noise=z), student.infer(mel, noise=z))
    assert again.sample_rate == 22050 and again.hop_length == 256 and again.mel_config == student.mel_config


def test_blocks(golden, tmp_path):
    path = golden.path(TEACHER)
    assert fastvoc.load(path).config.dilations == [1, 2, 4] * 2  # two blocks unless said
    assert fastvoc.load(path, blocks=3).config.dilations == [1, 2] * 3
    assert fastvoc.load(golden.path(STUDENT), teacher=path, blocks=2).config.dilations == [[1, 2] * 2] * 2
    state = weights(golden, STUDENT)
    of_block = lambda i: {k: v for k, v in state.items() if f"iafs.1.res_blocks.{i}." in k}
    longer = {k.replace(f"blocks.{i}", f"blocks.{4 + i}"): v for i in range(4) for k, v in of_block(i).items()}
    torch.save(state | longer, tmp_path / "longer.pth")  # a flow of two blocks tells how long a block is
    assert fastvoc.load(tmp_path / "longer.pth", teacher=path).config.dilations == [[1, 2, 4, 8], [1, 2, 4, 8] * 2]
    with pytest.raises(ConfigError, match="6 layers do not form 4 equal blocks.*blocks="):
        fastvoc.load(path, blocks=4)


def test_blocks_where_upstreams_defaults_do_not_fit(golden, tmp_path, caplog):
    """Teachers with an odd number of layers, and with more than two blocks of ten; a student of twice ten."""
    state = weights(golden, TEACHER)
    layer = lambda i, j: {k.replace("blocks.0", f"blocks.{j}"): v for k, v in state.items() if f"res_blocks.{i}." in k}
    rest = {k: v for k, v in state.items() if "res_blocks." not in k}
    for n, want in ((5, [1, 2, 4, 8, 16]), (20, [2**i for i in range(10)] * 2), (30, [2**i for i in range(10)] * 3)):
        torch.save(rest | {k: v for j in range(n) for k, v in layer(0, j).items()}, tmp_path / "teacher.pth")
        with caplog.at_level("INFO", "fastvoc"):
            assert fastvoc.load(tmp_path / "teacher.pth").config.dilations == want
        assert f"dilations taken to be {want}, which the weights do not tell; blocks=" in caplog.text
    state = weights(golden, STUDENT)
    longer = {
        k.replace(f"blocks.{i}.", f"blocks.{i + 4 * n}."): v
        for k, v in state.items() for i in range(4) for n in range(5) if f"res_blocks.{i}." in k
    }  # fmt: skip
    torch.save(state | longer, tmp_path / "student.pth")
    model = fastvoc.load(tmp_path / "student.pth", teacher=golden.path(TEACHER))
    assert model.config.dilations == [[2**i for i in range(10)] * 2] * 2


def test_data_parallel_prefix_and_bare_state_dict(golden, teacher, tmp_path):
    state = {"module." + name: value for name, value in weights(golden, TEACHER).items()}
    torch.save(state, tmp_path / "bare.pth")
    again = fastvoc.load(tmp_path / "bare.pth").state_dict()
    assert all(torch.equal(again[name], value) for name, value in teacher.state_dict().items())


def test_what_does_not_fit(golden, tmp_path):
    with pytest.raises(ConfigError, match="upsampler is in its teacher's file.*teacher="):
        fastvoc.load(golden.path(STUDENT))
    with pytest.raises(ConfigError, match="belongs to a student"):
        fastvoc.load(golden.path(TEACHER), teacher=golden.path(TEACHER))
    with pytest.raises(IncompatibleCheckpointError, match="no ClariNet teacher"):
        fastvoc.load(golden.path(STUDENT), teacher=golden.path(STUDENT))
    state = weights(golden, TEACHER)
    for gone in ("res_blocks.2.gate_conv_c.bias", "final_conv.3.conv.weight_v", "upsample_conv.2.bias"):
        torch.save({"state_dict": {k: v for k, v in state.items() if k != gone}}, tmp_path / "part.pth")
        with pytest.raises(fastvoc.errors.CheckpointError, match="missing"):
            fastvoc.load(tmp_path / "part.pth")


def test_weight_norm_may_stay(golden, student):
    """For training on: the same outputs, and gradients with regard to magnitude and direction."""
    model = fastvoc.load(golden.path(STUDENT), teacher=golden.path(TEACHER), weight_norm=True)
    x, mean, _ = model(golden.tensor("student_z")[:, 0], golden.tensor("mel"))
    golden.check("student_x", x[:, None])
    mean.square().mean().backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any(name.endswith("original0") for name in names) and any(name.endswith("original1") for name in names)
