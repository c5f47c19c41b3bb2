"""Cross entropy over µ-law classes.

    logits   (B, A, T)  float32 | float64
    classes  (B, T)     int64, 0 ≤ class < A
    nll      (B, T)     -log softmax(logits)[class]

van den Oord et al. 2016, "WaveNet", §2.2. torch.nn.functional.cross_entropy, except that a class out of range names
itself: on a GPU torch's own check is an assertion on the device, after which the process has lost CUDA.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvoc.errors import DTypeError
from fastvoc.losses import _border


def mulaw_cross_entropy(
    logits: Tensor, classes: Tensor, reduction: str = "none", lengths: Tensor | None = None
) -> Tensor:
    """-log softmax(logits)[classes].   logits: (B, A, T), classes: (B, T) -> (B, T), or a scalar if reduced"""
    _border.check_prediction(logits, classes, reduction, "logits", "classes")
    if classes.dtype != torch.int64:
        raise DTypeError(f"classes must be int64, got {classes.dtype}.", hint="Pass µ-law classes as classes.long().")
    mask = _border.valid_mask(lengths, logits)
    logits, classes = _border.clear_padding(mask, logits, classes)

    A = logits.shape[1]
    bad = (classes < 0) | (classes >= A)
    if bad.any():
        b, t = bad.nonzero()[0].tolist()
        raise IndexError(f"classes[{b}, {t}] is {int(classes[b, t])}, but logits of shape {tuple(logits.shape)} know "
                         f"classes 0 to {A - 1}. Encode with as many µ-law levels as the network has outputs; mark "
                         "padding with lengths, not with a class of its own.")
    return _border.reduce(F.cross_entropy(logits, classes, reduction="none"), mask, reduction)
