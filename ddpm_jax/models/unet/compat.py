"""In what published networks of the same form differ."""

from typing import Literal, NamedTuple

AttentionBy = Literal["size", "factor"]
"""Whether `attention_resolutions` lists sizes of the image, or the factors by which a level is smaller than it."""

TimeConditioning = Literal["add", "scale_shift"]
"""Whether a block adds the time before its second normalisation, or scales and shifts what comes out of that."""

Resample = Literal["layer", "block"]
"""Whether a layer of its own changes the size, or a residual block that halves or doubles within."""

Padding = Literal["end", "both"]
"""Where a convolution of stride 2 is given zeros: after the end (the bottom and the right), or on both sides."""

TimeOrder = Literal["sin_cos", "cos_sin"]
"""What comes first in the embedding of a time."""


class CompatOptions(NamedTuple):
    """What two authors do differently where neither had a reason to; the defaults are the original's.

    They change no shape, but for `time_dim`: weights of one convention give no error under another, only other images.

    eps: added to the variance in every normalisation: 1e-6 (TF), 1e-5 (PyTorch).
    padding: of the convolutions that halve the size: "end" is TF's SAME, "both" PyTorch's padding=1.
    time_order, time_shift: of the time's embedding, see `layers.timestep_embedding`.
    time_scale: what the time, counted from zero, is multiplied by first: 1000 / T where it is to run to 1000 whatever
        T is (improved-diffusion's rescale_timesteps).
    time_dim: numbers in the time's embedding, of which the network makes 4 times as many; 0 is as many as `channels`.
    """

    eps: float = 1e-6
    padding: Padding = "end"
    time_order: TimeOrder = "sin_cos"
    time_shift: int = 1
    time_scale: float = 1.0
    time_dim: int = 0


OPENAI = CompatOptions(eps=1e-5, padding="both", time_order="cos_sin", time_shift=0)
"""Those of improved-diffusion (arXiv:2102.09672) and guided-diffusion (arXiv:2105.05233)."""
