"""WaveGlow's memory-efficient training step: the stored version's gradients, and a fraction of its memory."""

import pytest
import torch

from fastvoc.losses import waveglow_loss
from fastvoc.models import WaveGlow
from tests.test_waveglow import GOLDEN, nvidia, small

torch.set_num_threads(1)


def step(model, wave, mel, efficient):
    wave, mel = wave.clone().requires_grad_(), mel.clone().requires_grad_()
    outputs = model(wave, mel, memory_efficient=efficient)
    loss = waveglow_loss(*outputs, sigma=0.8)
    return loss, torch.autograd.grad(loss, [wave, mel, *model.parameters()])


CONFIGS = [
    {}, {"alternating": True}, {"n_early_every": 1, "n_group": 12}, {"n_flows": 1},
    {"n_early_size": 4, "n_group": 10, "n_flows": 4},
]  # fmt: skip


@pytest.mark.parametrize("changes", CONFIGS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_gradients_of_the_stored_version(changes, weight_norm):
    model = small(**changes).double()
    if weight_norm:
        model.apply_weight_norm()
    wave, mel = torch.randn(2, 120, dtype=torch.float64), torch.randn(2, 3, 10, dtype=torch.float64)
    loss, want = step(model, wave, mel, False)
    efficient, got = step(model, wave, mel, True)
    assert torch.equal(loss, efficient)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12 * float(b.abs().max()) + 1e-15) and a.shape == b.shape
    assert sum(bool(g.any()) for g in got) > 0.9 * len(got)


def test_autocast():
    """bfloat16 inside the networks, float32 between the flows; both versions round alike."""
    model = small(n_channels=16)
    wave, mel = torch.randn(2, 240), torch.randn(2, 3, 20)
    exact, want = step(model, wave, mel, False)
    losses, gradients = [], []
    for efficient in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            loss, grads = step(model, wave, mel, efficient)
        losses.append(loss)
        gradients.append(grads)
    assert torch.equal(*losses) and losses[0] != exact and torch.allclose(losses[0], exact, rtol=1e-2)
    for a, b, c in zip(*gradients, want, strict=True):
        scale = float(c.abs().max())
        assert a.dtype == b.dtype == torch.float32
        assert float((a - b).abs().max()) <= 0.02 * scale + 1e-6 and float((b - c).abs().max()) <= 0.1 * scale + 1e-6


def test_gradients_of_the_public_code():
    """In float32 the way back costs some rounding; the goldens' tolerance is 8 times the upstream's own."""
    model = nvidia()
    z, log_s, log_det = model(*(GOLDEN.tensor(f"fwd_{x}").requires_grad_() for x in ("audio", "mel")), memory_efficient=True)
    wave, mel = GOLDEN.tensor("fwd_audio").requires_grad_(), GOLDEN.tensor("fwd_mel").requires_grad_()
    loss = waveglow_loss(*model(wave, mel, memory_efficient=True), float(GOLDEN["fwd_sigma"]))
    loss.backward()
    for name, value in {"fwd_z": z, "fwd_loss": loss, "fwd_grad_audio": wave.grad, "fwd_grad_mel": mel.grad}.items():
        GOLDEN.check(name, value)
    GOLDEN.check("fwd_gradp:convinv.0.conv.weight", model.flows[0].convinv.conv.weight.grad)
    GOLDEN.check("fwd_gradp:WN.0.end.weight", model.flows[0].coupling.net.end.weight.grad)


def test_parts_of_the_outputs_alone():
    model = small().double()
    wave, mel = torch.randn(1, 60, dtype=torch.float64, requires_grad=True), torch.randn(1, 3, 6, dtype=torch.float64)
    for pick in (lambda z, log_s, log_det: z[:, 1].sum(), lambda z, log_s, log_det: log_s[2].sum()):
        grads = [torch.autograd.grad(pick(*model(wave, mel, memory_efficient=e)), wave)[0] for e in (False, True)]
        assert torch.allclose(*grads, rtol=0, atol=1e-12) and grads[0].any()


def saved_bytes(n_flows, efficient):
    """What autograd keeps between the two passes, beside the parameters."""
    torch.manual_seed(0)
    model = WaveGlow(n_mel_channels=2, n_flows=n_flows, n_group=4, n_early_every=100, n_layers=2, n_channels=16,
                     upsample_kernel=16, upsample_stride=8)  # fmt: skip
    own, kept = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    wave, mel = torch.randn(2, 800), torch.randn(2, 2, 100)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z, log_s, log_det = model(wave, mel, memory_efficient=efficient)
    return sum(kept.values())


def test_the_memory_does_not_grow_with_the_flows():
    stored = [saved_bytes(n, False) for n in (1, 12)]
    efficient = [saved_bytes(n, True) for n in (1, 12)]
    assert stored[1] > 10 * stored[0]
    assert efficient[1] < 1.1 * efficient[0] + 20_000 and efficient[1] < stored[1] / 20


def test_no_gradient_of_the_gradient():
    model = small()
    wave = torch.randn(1, 60, requires_grad=True)
    z, *_ = model(wave, torch.randn(1, 3, 6), memory_efficient=True)
    with pytest.raises(NotImplementedError, match="memory_efficient=False"):
        torch.autograd.grad(z.square().sum(), wave, create_graph=True)
