"""Checkpoints as the original's program wrote them."""

import importlib.util

import pytest

needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="takes the extra [tfds]")


def write_tensorflow_checkpoint(prefix, variables):
    """Writes arrays by the names that the variables of a graph have."""
    import tensorflow

    names = list(variables)
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names),
        tensors=[tensorflow.constant(variables[name]) for name in names],
    )  # fmt: skip
