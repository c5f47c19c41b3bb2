"""A rewriting of parameter names and layouts, with words for what it misses and what it leaves over."""

import re
from collections.abc import Callable

from torch import Tensor

from fastvoc.errors import IncompatibleCheckpointError
from fastvoc.models.pretrained import misfit


class _Recorded(dict):
    """A state_dict that notes what is taken from it. In place of what it lacks it gives the same of another layer, so
    that the rewriting goes on and all that is missing is found."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__(state)
        self.taken, self.missing = set(), []

    def __getitem__(self, name: str) -> Tensor:
        self.taken.add(name)
        if name in self:
            return super().__getitem__(name)
        self.missing.append(name)
        alike = lambda key: re.sub(r"\.\d+\.", ".#.", key)
        return super().__getitem__(next((key for key in self if alike(key) == alike(name)), name))


def rewritten(rewrite: Callable, state: dict[str, Tensor], path) -> dict[str, Tensor]:
    """rewrite(state). Raises IncompatibleCheckpointError with the names that it needs and state lacks, or does not use."""
    recorded = _Recorded(state)
    try:
        result = rewrite(recorded)
    except KeyError:  # nothing like it in any layer
        result = None
    except (IndexError, RuntimeError, ValueError) as fault:
        if not recorded.missing:
            raise IncompatibleCheckpointError(f"{path}: the weights' shapes do not fit each other: {fault}") from None
    # A rewriting that broke off has not asked for all that it would use
    unexpected = [name for name in state if name not in recorded.taken] if result is not None else []
    if recorded.missing or unexpected:
        raise misfit(state, list(dict.fromkeys(recorded.missing)), unexpected, path, "its layout")
    return result
