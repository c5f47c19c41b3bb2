"""What the kernels share: tanh, the gate and its gradient, on float32 values in registers."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Within 3 ULP. Not libdevice's: the interpreter, in which the kernels are tested, has no external functions."""
    magnitude = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)  # exact to rounding where nothing cancels; 1 for e^2x = inf
    q = x * x
    # Cephes' tanhf, for |x| < 0.625
    p = ((((-5.70498872745e-3 * q + 2.06390887954e-2) * q - 5.37397155531e-2) * q) + 1.33314422036e-1) * q
    small = x + x * q * (p - 3.33332819422e-1)
    return tl.where(magnitude < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def gate(a, b):
    return tanh(a) * tl.sigmoid(b)


@triton.jit
def gate_gradient(dy, a, b):
    """-> da, db and, since it costs nothing here, the gate itself."""
    t = tanh(a)
    s = tl.sigmoid(b)
    return dy * s * (1 - t * t), dy * t * s * (1 - s), t * s
