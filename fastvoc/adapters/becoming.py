"""A model of a subclass in place of one of its parent."""

from torch import Tensor


def become(cls, model):
    """The same model as an instance of cls, a subclass that adds methods and no parameters."""
    new = cls(model.config)
    new.load_state_dict(model.state_dict())
    new.preprocessing = model.preprocessing
    return new.eval()


def in_dtype_of(model, values):
    """A half-precision caller's tensor as the model takes it, which keeps its weights in float32; other things as they are."""
    floats = isinstance(values, Tensor) and values.is_floating_point()
    return values.to(next(model.parameters()).dtype) if floats else values
