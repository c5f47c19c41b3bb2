"""torch.nn's paddings by name, as the public configurations give them."""

from torch import nn

from fastvoc.errors import ConfigError

PADDINGS = {
    cls.__name__: cls for cls in (nn.ReflectionPad1d, nn.ReplicationPad1d, nn.ZeroPad1d, nn.ConstantPad1d, nn.CircularPad1d)
}


def padding(name: str, sides: tuple[int, int], params: dict | None = None) -> nn.Module:
    """padding("ConstantPad1d", (3, 3), {"value": 0.0}). Raises ConfigError for a name or parameters torch.nn lacks."""
    if name not in PADDINGS:
        raise ConfigError(f"pad: got {name!r}, expected one of {sorted(PADDINGS)}")
    try:
        return PADDINGS[name](sides, **(params or {}))
    except TypeError as fault:
        raise ConfigError(f"the parameters {params!r} do not fit {name}: {fault}") from None
