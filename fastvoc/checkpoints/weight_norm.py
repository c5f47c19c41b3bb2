"""Weight norm folded away: w = g · v / ‖v‖, the norm over all dimensions but the first.

    X.weight_g, X.weight_v                                    torch.nn.utils.weight_norm
    X.parametrizations.weight.original0, …original1           torch.nn.utils.parametrizations.weight_norm
    X.weight                                                  folded already

Any mixture in one file. In float64: in float32 the norm of a large kernel costs some ulp, and this happens once.
"""

from torch import Tensor

from fastvoc.errors import CorruptCheckpointError

SPELLINGS = [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]


def fold_weight_norm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of plain weights."""
    folded = dict(state_dict)
    for g_name, v_name in SPELLINGS:
        for key in state_dict:
            if not key.endswith(("." + g_name, "." + v_name)):
                continue
            prefix = key.removesuffix(g_name).removesuffix(v_name)
            if prefix + g_name not in folded and prefix + v_name not in folded:
                continue  # done, at the pair's other half
            g, v = folded.pop(prefix + g_name, None), folded.pop(prefix + v_name, None)
            if g is None or v is None:
                half, other = (v_name, g_name) if g is None else (g_name, v_name)
                raise CorruptCheckpointError(f"{prefix}{half} is there, but {prefix}{other} is missing")
            if v.dim() < 1 or tuple(g.shape) != (v.shape[0], *[1] * (v.dim() - 1)):
                raise CorruptCheckpointError(
                    f"{prefix}{g_name} is {tuple(g.shape)} and {v_name} {tuple(v.shape)}; expected one factor per row"
                )
            norm = v.double().flatten(1).norm(dim=1).reshape(g.shape)
            # A plain weight beside the pair is what the last forward pass left behind: g and v count
            folded[prefix + "weight"] = (g.double() * (v.double() / norm)).to(v.dtype)
    return folded


def strip_prefix(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """DataParallel's "module." and its kin, where every key has it."""
    if not all(isinstance(key, str) and key.startswith(prefix) for key in state_dict):
        return state_dict
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}


def respell_weight_norm(state_dict: dict[str, Tensor], wanted) -> dict[str, Tensor]:
    """The same weights, named as `wanted` names them: pairs keep their numbers, a plain weight becomes a pair.

    For training on, where g and v matter and not only their product.
    """
    folded, spelled = fold_weight_norm(state_dict), dict(state_dict)
    for key in wanted:
        if not key.endswith(tuple(v for _, v in SPELLINGS)):
            continue
        g_name, v_name = next(pair for pair in SPELLINGS if key.endswith(pair[1]))
        prefix = key.removesuffix(v_name)
        weight = folded.get(prefix + "weight")
        if weight is None:
            continue  # whoever loads this says what is missing
        pairs = [(spelled.pop(prefix + g, None), spelled.pop(prefix + v, None)) for g, v in SPELLINGS]
        g, v = next((pair for pair in pairs if pair[0] is not None), (None, weight))
        spelled.pop(prefix + "weight", None)
        spelled[prefix + v_name] = v
        spelled[prefix + g_name] = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1)) if g is None else g
    return spelled
