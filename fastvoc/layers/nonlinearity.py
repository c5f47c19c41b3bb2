"""torch.nn's activations by name, as the public configurations give them."""

from torch import nn

from fastvoc.errors import ConfigError


def nonlinearity(name: str, params: dict | None = None) -> nn.Module:
    """nonlinearity("LeakyReLU", {"negative_slope": 0.2}). Raises ConfigError for a name or parameters torch.nn lacks."""
    if name not in nn.modules.activation.__all__:
        raise ConfigError(f"activation: got {name!r}, expected one of torch.nn's, such as ReLU, LeakyReLU, ELU or Tanh")
    try:
        return getattr(nn, name)(**(params or {}))
    except TypeError as fault:
        raise ConfigError(f"the parameters {params!r} do not fit {name}: {fault}") from None
