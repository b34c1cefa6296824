"""Tensors computed from their names, so that golden files need not hold weights.

A value depends on name and shape only. The numbers are uniform, from a stream that NumPy guarantees, seeded by the
SHA-256 of the name. They are scaled so that activations stay of order one.
"""

import hashlib

import numpy as np
import torch

NORMALIZED = {"mean": [0.0] * 3, "std": [1.0] * 3, "max_value": 1.0}
"""`normalization` of `build_model` for images that are normalised already."""


def named_tensor(name, shape):
    """Zero mean, unit variance, float32."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    uniform = np.random.Generator(np.random.PCG64(seed)).random(tuple(shape))
    return torch.from_numpy(((uniform - 0.5) * np.sqrt(12)).astype(np.float32))


def named_weight(name, shape):
    """A value for a state-dict entry: fan-in scaling for matrices, near 1 for scales, small for biases."""
    z = named_tensor(name, shape)
    if name.endswith(("frequencies", "vectors", "gaussian_matrix", "basic_queries.weight")):
        return z
    if name.endswith(("gamma", "layer_scale")):
        return 0.5 + 0.1 * z
    if name.endswith("running_var"):
        return 1 + 0.1 * z.abs()
    if len(shape) >= 2:
        return z / float(np.prod(shape[1:])) ** 0.5
    return (1.0 if name.endswith("weight") else 0.0) + 0.1 * z


def fill(module):
    """Gives every floating-point entry of a module its named value, in place; returns the module."""
    state = module.state_dict()
    module.load_state_dict(
        {n: named_weight(n, v.shape) if v.is_floating_point() else v for n, v in state.items()}
    )
    return module


def relative_error(result, expected):
    """Returns the norm of the difference divided by the norm of the expected value."""
    result, expected = (torch.as_tensor(item).detach().double() for item in (result, expected))
    return float((result - expected).norm() / expected.norm())
