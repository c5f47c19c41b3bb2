"""A model of a subclass in place of one of its parent."""


def become(cls, model):
    """The same model as an instance of cls, a subclass that adds methods and no parameters."""
    new = cls(model.config)
    new.load_state_dict(model.state_dict())
    new.preprocessing = model.preprocessing
    return new.eval()
