"""WaveGlow's training step with the memory of one flow: the flows' inputs are computed back from their outputs.

Autograd keeps what each of the flows' networks computed, n_flows · n_layers · some 8·n_channels numbers per group. Here
the forward pass keeps nothing but its result. The backward pass starts from that: it runs a flow's network once more, on
the half of the channels that the coupling left as it was, undoes the coupling and the convolution, and takes the gradients
of this one flow.

Gomez et al. 2017, "The Reversible Residual Network: Backpropagation Without Storing Activations"; that a coupling can be
undone although its network cannot: Dinh et al. 2017, "Density estimation using Real NVP", section 3.2.
"""

import torch
from torch import Tensor

from fastvoc.ops.affine_coupling import affine_coupling_bwd
from fastvoc.ops.invertible_conv1x1 import inverse, invertible_conv1x1_bwd, invertible_conv1x1_fwd


def reversible_flows(model, x: Tensor, cond: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the flows of WaveGlow.forward compute: x (B, n_group, T), cond (B, T, C) -> z (B, n_group, T), log_s of each.

    The convolutions' log-determinants are not a part of it. The model must have the same parameters at the backward pass,
    which torch.func.functional_call with others does not give. No gradient of the gradient: NotImplementedError.
    """
    parameters = [p for flow in model.flows for p in flow.parameters()]
    z, *log_s = _Flows.apply(model, x, cond, *parameters)
    return z, log_s


class _Flows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, model, x, cond, *parameters):
        z, log_s = [], []
        for k, flow in enumerate(model.flows):
            if model.config.is_early(k):
                early, x = x.tensor_split([model.config.n_early_size], 1)
                z.append(early)
            x, s, _ = flow(x, cond)
            log_s.append(s.contiguous())
        z = torch.cat([*z, x], 1)
        ctx.model = model
        kind = x.device.type
        ctx.autocast = {
            "device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind),
        }  # fmt: skip
        ctx.save_for_backward(z, cond)
        ctx.set_materialize_grads(False)
        return z, *log_s

    @staticmethod
    def backward(ctx, dz, *dlog_s):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "WaveGlow.forward(memory_efficient=True) has no gradient of its gradient; use memory_efficient=False"
            )
        z, cond = ctx.saved_tensors
        config, flows = ctx.model.config, ctx.model.flows
        dz = torch.zeros_like(z) if dz is None else dz
        n_early = config.n_group - config.channels[-1]  # channels that left, in front of those that stay
        y, dy = z[:, n_early:], dz[:, n_early:]
        dcond, gradients = torch.zeros_like(cond, dtype=torch.promote_types(cond.dtype, torch.float32)), []
        for k in reversed(range(len(flows))):
            with torch.autocast(**ctx.autocast):  # the networks must give what they gave on the way there
                y, dy, dc, own = _back(flows[k], y, dy, dlog_s[k], cond)
            dcond += dc
            gradients = own + gradients
            if config.is_early(k):
                n_early -= config.n_early_size
                left = slice(n_early, n_early + config.n_early_size)
                y, dy = torch.cat([z[:, left], y], 1), torch.cat([dz[:, left], dy], 1)
        return None, dy, dcond.to(cond.dtype), *gradients


def _back(flow, y: Tensor, dy: Tensor, dlog_s: Tensor | None, cond: Tensor):
    """One flow backwards: its output and the gradient of that -> its input, the gradient, cond's, and the parameters'."""
    coupling = flow.coupling
    (a, b), (da, db) = coupling.halves(y), coupling.halves(dy)
    a, c = a.detach().requires_grad_(), cond.detach().requires_grad_()
    with torch.enable_grad():
        params = coupling.net((a, c))
    known = params.detach().to(y.dtype)
    v, log_s = coupling.undone(a.detach(), b, known), known.chunk(2, 1)[1]
    before = coupling.halves(v)[1]
    db, log_s, before = (tensor.contiguous() for tensor in (db, log_s, before))
    dbefore, ds = affine_coupling_bwd(db, db.new_zeros(len(db)), before, log_s)
    if dlog_s is not None:
        ds = ds + dlog_s
    names = [name for name, _ in flow.named_parameters()]
    inner = list(coupling.net.parameters())
    through = torch.autograd.grad(params, [a, c, *inner], torch.cat([db, ds], 1).to(params.dtype))
    dv = coupling.joined(da + through[0], dbefore)
    weight = flow.convinv.conv.weight.detach()[:, :, 0]
    x = invertible_conv1x1_fwd(v, inverse(weight))
    dx, dweight = invertible_conv1x1_bwd(dv, x, weight)
    by_name = {"convinv.conv.weight": dweight[:, :, None]}
    by_name |= {f"coupling.net.{name}": g for (name, _), g in zip(coupling.net.named_parameters(), through[2:])}
    return x, dx, through[1], [by_name[name] for name in names]
