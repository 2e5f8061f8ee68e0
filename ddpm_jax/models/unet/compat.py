"""Compatibility options for published U-Nets."""

from typing import Literal, NamedTuple

AttentionBy = Literal["size", "factor"]
"""The unit of `attention_resolutions`: sizes of the image, or factors by which a level is smaller than it."""

TimeConditioning = Literal["add", "scale_shift"]
"""The time embedding is added before a block's second normalisation, or scales and shifts its result."""

Resample = Literal["layer", "block"]
"""Sizes change in a layer of its own, or in a residual block."""

Padding = Literal["end", "both"]
"""Zero padding of a convolution of stride 2: after the end (the bottom and the right), or on both sides."""

TimeOrder = Literal["sin_cos", "cos_sin"]
"""The order of sines and cosines in the time embedding."""


class CompatOptions(NamedTuple):
    """Details in which published implementations differ; the defaults are the original's.

    They change no shape but that of `time_dim`: weights under the wrong options give no error, only wrong images.

    eps: added to the variance in every normalisation: 1e-6 (TF), 1e-5 (PyTorch).
    padding: of the convolutions that halve the size: "end" is TF's SAME, "both" PyTorch's padding=1.
    time_order, time_shift: of the time embedding, see `layers.timestep_embedding`.
    time_scale: factor of the time, counted from zero: 1000 / T if it is to run to 1000 whatever T is
        (improved-diffusion's rescale_timesteps).
    time_dim: dimension of the sinusoidal time embedding; 0 is `channels`.  The network's is 4 times as large.
    """

    eps: float = 1e-6
    padding: Padding = "end"
    time_order: TimeOrder = "sin_cos"
    time_shift: int = 1
    time_scale: float = 1.0
    time_dim: int = 0


OPENAI = CompatOptions(eps=1e-5, padding="both", time_order="cos_sin", time_shift=0)
"""Options of improved-diffusion (arXiv:2102.09672) and guided-diffusion (arXiv:2105.05233)."""
