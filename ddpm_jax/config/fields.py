"""The fields of a config, with their defaults; what numbers they may have is in `ranges`."""

import dataclasses
import math
from typing import Literal

Spacing = Literal["uniform", "leading", "trailing", "linspace", "ddim", "quadratic", "log_snr", "karras"]


@dataclasses.dataclass(frozen=True)
class Data:
    source: str = "digits"
    """"digits", "pairs", "scenes", "npz:PATH", "npy:PATH" (NHWC or volumes NDHWC), "folder:PATH" or "tfds:NAME"."""
    flip: bool = False
    """Mirror each training image left-right with probability 1/2."""
    held_out: float = 0.1
    """Share held out for evaluation, if the source has no test split of its own."""
    levels: int | None = None
    """Values a pixel can take; None is 17 for digits, 256 for uint8, 65536 for uint16."""
    range: tuple[float, ...] = ()
    """Lowest and highest value of floating-point images, which become -1 and 1."""
    resolution: tuple[int, ...] = ()
    """Bring images of a folder or of TFDS to SIDE, or HEIGHT WIDTH: cut to their middle, scaled; () is as stored."""
    skip_bad: bool = False
    """Go on without files of a folder that are unreadable or of another mode; the report names them."""
    stream: bool | None = None
    """Read images ahead of each step, not hold them all on every device; None does so with more than 2 GiB of them."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    kind: Literal["linear", "cosine", "quad", "const", "jsd", "warmup10", "warmup50"] = "linear"
    """The noise schedule, see ddpm_jax.schedules."""
    T: int = 1000
    """Number of noise steps."""
    beta_1: float = 1e-4
    """First beta (linear, quad, warmup10, warmup50)."""
    beta_T: float = 0.02
    """Last beta (linear, quad, warmup10, warmup50), or the only one (const)."""
    offset: float = 0.008
    """Offset of the cosine schedule."""
    max_beta: float = 0.999
    """Largest beta of the cosine schedule."""
    zero_terminal_snr: bool = False
    """Rescale any of them so that no signal is left at T: for networks that predict v or x0."""


@dataclasses.dataclass(frozen=True)
class CompatOptions:
    eps: float = 1e-6
    """Added to the variance in every normalisation; 1e-5 in networks made with PyTorch."""
    padding: Literal["end", "both"] = "end"
    """Where convolutions that halve the size get their zeros: after the end (TF's SAME), or PyTorch's padding=1."""
    time_order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    """What comes first in the embedding of the time."""
    time_shift: int = 1
    """The embedding's frequencies fall by 10000^(-1 / (half - shift)): 1 is the original's, 0 OpenAI's."""
    time_scale: float = 1.0
    """What the time, counted from zero, is multiplied by; 1000 / T lets it run to 1000 whatever T is."""
    time_dim: int = 0
    """Numbers in the time's embedding; 0 is as many as channels."""


@dataclasses.dataclass(frozen=True)
class Net:
    channels: int = 128
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level as multiples; each level halves the resolution."""
    num_res_blocks: int = 2
    """Residual blocks per level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Resolutions with self-attention; the middle always has it."""
    attention_by: Literal["size", "factor"] = "size"
    """The meaning of attention_resolutions: sizes of a level, or factors by which levels are smaller than the image."""
    heads: int = 1
    """Attention heads."""
    head_channels: int = 0
    """Channels of each head, in place of heads; 0 is what heads says."""
    dropout: float = 0.1
    """Dropout before the second convolution of each block."""
    groups: int = 32
    """Groups of the normalisations; levels of no more channels than this do not feel the time."""
    resample_with_conv: bool = True
    """Convolve when changing resolution; otherwise average and repeat."""
    resample: Literal["layer", "block"] = "layer"
    """Change the resolution in a layer of its own, or in a residual block that averages or repeats."""
    time_conditioning: Literal["add", "scale_shift"] = "add"
    """Add the time in each block, or let it scale and shift what the second normalisation gives."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters, statistics and losses are float32."""
    remat: bool = False
    """Keep less for the gradient and compute it again: much less memory, about a third more work."""
    num_classes: int = 0
    """Tell the network the label of each image: how many labels there are; 0 does not."""
    compat: CompatOptions = CompatOptions()
    """In what else published networks of this form differ from the original."""


@dataclasses.dataclass(frozen=True)
class Text:
    layers: int = 0
    """Tell the network a text about each image: layers of the transformer that reads it; 0 does not."""
    width: int = 256
    """Numbers for each of a text's bytes."""
    heads: int = 4
    """Attention heads."""
    length: int = 128
    """The most bytes of a text."""


@dataclasses.dataclass(frozen=True)
class Condition:
    dropout: float = 0.1
    """Share of examples that are trained without a condition, as classifier-free guidance needs."""
    templates: tuple[str, ...] = ()
    """Texts with {} for the name of an image's label, or {caption} for its caption; () is captions, or names."""
    super_resolution_factor: int = 0
    """Show the network each image made coarser by this factor, for it to refine (super-resolution); 0 does not."""
    paired: str = ""
    """A source of as many other images, in the same order, the conditioning images; "" for none."""
    paired_channels: int = 0
    """Channels of the paired images; 0 is as many as the images have."""


@dataclasses.dataclass(frozen=True)
class Loss:
    kind: Literal["simple", "hybrid", "variational"] = "simple"
    """L_simple; L_simple + vlb_scale * L_vlb with a learned variance; or the bound itself."""
    predicts: Literal["eps", "x0", "v", "mean"] = "eps"
    """What the network predicts."""
    weight: Literal["none", "snr", "snr_plus_one", "truncated_snr", "min_snr", "p2"] = "none"
    """Weighting of the simple loss by the signal-to-noise ratio."""
    min_snr_gamma: float = 5.0
    """Where min_snr cuts the signal-to-noise ratio."""
    p2_gamma: float = 1.0
    """The power of p2."""
    learned_variance: bool = False
    """The network also gives the reverse variance (always so with hybrid)."""
    vlb_scale: float = 1e-3
    """Share of the bound in the hybrid loss."""
    stratified: bool = False
    """Spread the times of a batch evenly over 1..T."""


@dataclasses.dataclass(frozen=True)
class Optim:
    learning_rate: float = 2e-4
    """Adam's rate after the warm-up."""
    warmup: int = 5000
    """Steps over which the rate rises from 0."""
    decay: int = 0
    """Steps after which the rate has fallen to 0 as a cosine: those of the whole run, or 0, which keeps the rate."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; None, or infinity, never clips."""
    b1: float = 0.9
    """Adam's first decay."""
    b2: float = 0.999
    """Adam's second decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters."""
    ema_warmup: bool = False
    """Let the decay rise as (1 + n) / (10 + n) first: for short runs."""
    accumulate: int = 1
    """Micro-batches per step and device."""
    max_skipped: int = 10
    """Stop after this many steps in a row with a loss or gradient that is not finite."""

    def __post_init__(self):
        if self.clip == math.inf:  # for which JSON has no word
            object.__setattr__(self, "clip", None)


@dataclasses.dataclass(frozen=True)
class SamplerFields:
    sampler: Literal["ancestral", "analytic", "ddim", "dpm_solver_pp", "unipc"] = "ancestral"
    """The reverse process; analytic is ancestral with the variance that the network's errors ask for."""
    steps: int = 1000
    """Function evaluations (NFE) per image."""
    spacing: Spacing = "uniform"
    """Spacing of the visited times over 1..T."""
    variance_mix: float = 1.0
    """Reverse variance of ancestral sampling: 1 is beta (the original's CIFAR-10), 0 is beta-tilde (its 256x256); a
    learned variance takes its place."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 ancestral."""
    order: int = 2
    """Order of DPM-Solver++ and UniPC, 1 to 3: 2 and 3 use the predictions of earlier steps."""
    clip: bool = True
    """Bring each predicted x_0 into [-1, 1]."""
    threshold: float = 0.0
    """Instead of clipping, divide x_0 by this percentile of its absolute value, if that exceeds 1; 0 is off."""
    eps_scale: float = 1.0
    """Divide the predicted noise by this, before x_0 is clipped."""
    guidance: float = 1.0
    """Classifier-free guidance scale: 0 is unconditional, 1 is conditional without guidance, more is stronger."""
    guidance_interval: tuple[int, ...] = ()
    """First and last time t to guide at; () is all."""
    tile: int = 0
    """Images per device and network call: part of what an image is, to the bit.  0 is as many as suit the device."""


@dataclasses.dataclass(frozen=True)
class Sampling(SamplerFields):
    num: int = 64
    """Images in the grids that training draws."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    images: int = 256
    """How many held-out images training evaluates (all, if there are fewer)."""
    strata: int = 16
    """Strata of the estimate of bits/dim: two network calls per image and stratum."""


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    """Everything random in a run follows from it."""
    steps: int = 800_000
    """Training steps."""
    batch: int = 128
    """Images per step, over all devices."""
    steps_per_call: int = 1
    """Steps that the devices take at one call: more, where a step is so short that calling takes longer."""
    log_every: int = 100
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 10_000
    """Steps between sample grids and held-out evaluations; 0 is only at the end."""
    save_every: int = 5_000
    """Steps between checkpoints (there is always one at the end)."""
    keep: int = 3
    """Checkpoints to keep."""
    data: Data = Data()
    schedule: Schedule = Schedule()
    net: Net = Net()
    text: Text = Text()
    condition: Condition = Condition()
    loss: Loss = Loss()
    optim: Optim = Optim()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
