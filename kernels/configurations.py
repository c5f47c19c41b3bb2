"""The tile sizes that tuning chooses from: data, a short list per kernel. The first of a list is used untuned.
By bytes of an element: float32 tiles take twice the memory, and more registers.

Every configuration of every kernel must compile for compute capability 8.0, 9.0, 10.0 and 12.0 within 99 KiB of shared
memory and without spills: tests/triton_compile.py does it, tests/data/triton_resources.csv has what they use.
BLOCK_T: samples of a tile; BLOCK_C: channels summed over in one step; BLOCK_H, BLOCK_O: channels of the result.
"""


def _configuration(num_warps, num_stages, **blocks):
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages}


_elementwise = [_configuration(4, 1, BLOCK=1024), _configuration(8, 1, BLOCK=4096)]
ELEMENTWISE = {2: _elementwise, 4: _elementwise}

_conv1x1 = [_configuration(4, 1, BLOCK_T=256), _configuration(4, 1, BLOCK_T=128), _configuration(8, 1, BLOCK_T=512)]
CONV1X1 = {2: _conv1x1, 4: _conv1x1}

# The whole layer in one kernel. BLOCK_H holds all half-gate channels, so it is not chosen here.
LAYER = {
    2: [
        _configuration(4, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_O=32),
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_O=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=32, BLOCK_O=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=64, BLOCK_O=64),
    ],
    4: [
        _configuration(8, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_O=32),
        _configuration(4, 2, BLOCK_T=32, BLOCK_C=32, BLOCK_O=32),
        _configuration(8, 2, BLOCK_T=64, BLOCK_C=16, BLOCK_O=32),
    ],
}

# The convolution and the gate
GATE = {
    2: [
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_H=32),
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_H=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=32, BLOCK_H=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=64, BLOCK_H=64),
    ],
    4: [
        _configuration(4, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_H=32),
        _configuration(8, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_H=64),
        _configuration(8, 2, BLOCK_T=128, BLOCK_C=32, BLOCK_H=32),
    ],
}

# The 1×1 product after the gate, and the gradient of the input, which is a convolution too
PRODUCT = {
    2: [
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_O=64),
        _configuration(4, 3, BLOCK_T=128, BLOCK_C=32, BLOCK_O=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=32, BLOCK_O=128),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=64, BLOCK_O=128),
    ],
    4: [
        _configuration(4, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_O=32),
        _configuration(4, 2, BLOCK_T=32, BLOCK_C=32, BLOCK_O=64),
        _configuration(8, 2, BLOCK_T=128, BLOCK_C=32, BLOCK_O=64),
    ],
}

GATE_GRADIENT = {
    2: [
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_H=32),
        _configuration(4, 3, BLOCK_T=64, BLOCK_C=32, BLOCK_H=64),
        _configuration(8, 3, BLOCK_T=128, BLOCK_C=32, BLOCK_H=64),
    ],
    4: [
        _configuration(4, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_H=32),
        _configuration(8, 2, BLOCK_T=64, BLOCK_C=32, BLOCK_H=64),
        _configuration(8, 2, BLOCK_T=128, BLOCK_C=32, BLOCK_H=32),
    ],
}

# Tiles of the weights' gradient; sums over time
WEIGHT_GRADIENT = {
    2: [
        _configuration(8, 2, BLOCK_M=64, BLOCK_N=64),
        _configuration(4, 2, BLOCK_M=64, BLOCK_N=32),
        _configuration(4, 2, BLOCK_M=128, BLOCK_N=32),
    ],
    4: [
        _configuration(4, 2, BLOCK_M=64, BLOCK_N=32),
        _configuration(4, 2, BLOCK_M=32, BLOCK_N=64),
        _configuration(4, 2, BLOCK_M=32, BLOCK_N=32),
    ],
}
