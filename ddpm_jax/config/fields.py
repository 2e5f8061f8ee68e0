"""The fields of a config, with their defaults and the ranges of their numbers, see `ranges`."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from ddpm_jax.config.ranges import Count, CountOrZero, EmaLength, Steps

Spacing = Literal["uniform", "leading", "trailing", "linspace", "ddim", "quadratic", "log_snr", "karras"]
Parallel = Literal["pmap", "shard_map"]


@dataclasses.dataclass(frozen=True)
class Data:
    source: str = "digits"
    """"digits", "pairs", "scenes", "npz:PATH", "npy:PATH" (NHWC or volumes NDHWC), "folder:PATH" or "tfds:NAME"."""
    flip: bool = False
    """Mirror each training image left-right with probability 1/2."""
    held_out: Annotated[float, "(0, 1)"] = 0.1
    """Share of the images held out for evaluation, if the source has no test split."""
    levels: Annotated[int | None, "[2, 65536]"] = None
    """Number of values of a pixel; None: 17 for digits, 256 for uint8, 65536 for uint16."""
    range: tuple[Annotated[float, "[-1e38, 1e38]"], ...] = ()
    """Lowest and highest value of floating-point images, which are mapped to -1 and 1."""
    resolution: tuple[Annotated[int, "[1, 65536]"], ...] = ()
    """Centre-crop and scale images of a folder or of TFDS to SIDE, or HEIGHT WIDTH; (): as stored."""
    skip_bad: bool = False
    """Skip files of a folder that are unreadable or of another mode; the report names them."""
    stream: bool | None = None
    """Read images ahead of each step instead of keeping all on every device; None: if they exceed 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    kind: Literal["linear", "cosine", "quad", "const", "jsd", "warmup10", "warmup50"] = "linear"
    """Noise schedule, see ddpm_jax.schedules."""
    T: Steps = 1000
    """Number of timesteps."""
    beta_1: Annotated[float, "(0, 1]"] = 1e-4
    """First beta (linear, quad, warmup10, warmup50)."""
    beta_T: Annotated[float, "(0, 1]"] = 0.02
    """Last beta (linear, quad, warmup10, warmup50), or the only one (const)."""
    offset: Annotated[float, "[0, 10]"] = 0.008
    """Offset of the cosine schedule."""
    max_beta: Annotated[float, "(0, 1]"] = 0.999
    """Largest beta of the cosine schedule."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to zero SNR at T; needs a network that predicts v or x0."""


@dataclasses.dataclass(frozen=True)
class CompatOptions:
    eps: Annotated[float, "(0, 1]"] = 1e-6
    """Epsilon of the normalisations; 1e-5 in networks made with PyTorch."""
    padding: Literal["end", "both"] = "end"
    """Zero padding of downsampling convolutions: at the end (TF's SAME) or on both sides (PyTorch's padding=1)."""
    time_order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    """Order of sines and cosines in the timestep embedding."""
    time_shift: Annotated[int, "[0, 1]"] = 1
    """Embedding frequencies 10000^(-i / (half - shift)): 1 in the original, 0 in OpenAI's code."""
    time_scale: Annotated[float, "(0, 1e6]"] = 1.0
    """Factor of the timestep (counted from 0) before its embedding; 1000 / T: the input ends at 1000 for every T."""
    time_dim: Annotated[int, "[0, 65536]"] = 0
    """Size of the timestep embedding; 0: as many as channels."""


@dataclasses.dataclass(frozen=True)
class PatchTransformer:
    patch_size: Annotated[int, "[1, 1024]"] = 4
    """Side of a patch in pixels; images of other sizes are padded to whole patches."""
    width: Annotated[int, "[16, 65536]"] = 384
    """Channels of each patch's vector, a multiple of 4 and of heads."""
    depth: Annotated[int, "[1, 1024]"] = 12
    """Transformer blocks."""
    heads: Annotated[int, "[1, 65536]"] = 6
    """Attention heads."""
    mlp_ratio: Annotated[int, "[1, 1024]"] = 4
    """Channels between the two linear maps of a block, in units of width."""
    bottleneck: Annotated[int, "[0, 65536]"] = 0
    """Embed patches by two linear maps with this many channels between them; 0: by one."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation by the root mean square (RMSNorm), or by mean and standard deviation (LayerNorm)."""
    positions: Literal["rotary", "learned", "none"] = "rotary"
    """Positions of patches: rotary, or learned for one size of the images; none: patches are an unordered set."""


@dataclasses.dataclass(frozen=True)
class Net:
    channels: Annotated[int, "[1, 65536]"] = 128
    """Channels at full resolution."""
    channel_multipliers: tuple[Annotated[int, "[1, 1024]"], ...] = (1, 2, 2, 2)
    """Channels of each level, as multiples of channels; each level halves the resolution."""
    num_res_blocks: Annotated[int, "[1, 1024]"] = 2
    """Residual blocks per level."""
    attention_resolutions: tuple[Annotated[int, "[0, 65536]"], ...] = (16,)
    """Resolutions with self-attention; the middle block always has it."""
    attention_by: Literal["size", "factor"] = "size"
    """Meaning of attention_resolutions: the sizes of levels, or their downsampling factors."""
    heads: Annotated[int, "[1, 65536]"] = 1
    """Attention heads."""
    head_channels: Annotated[int, "[0, 65536]"] = 0
    """Channels per attention head, instead of heads; 0: heads sets the number."""
    dropout: Annotated[float, "[0, 1)"] = 0.1
    """Dropout rate before the last convolution or linear map of each block."""
    groups: Annotated[int, "[1, 65536]"] = 32
    """Groups of the normalisations; levels with at most this many channels ignore the timestep embedding."""
    resample_with_conv: bool = True
    """Change resolution by convolutions; otherwise by average pooling and nearest-neighbour upsampling."""
    resample: Literal["layer", "block"] = "layer"
    """Change resolution in a separate layer, or in a residual block that pools or upsamples."""
    time_conditioning: Literal["add", "scale_shift"] = "add"
    """The timestep embedding is added in each block, or scales and shifts the second normalisation."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters, statistics and losses stay float32."""
    remat: bool = False
    """Recompute activations for the gradient: much less memory, about a third more computation."""
    num_classes: Annotated[int, "[0, 1000000]"] = 0
    """Number of labels of a class-conditional network; 0: not conditioned on labels."""
    compat: CompatOptions = CompatOptions()
    """Compatibility options for published U-Nets."""
    kind: Literal["unet", "patch_transformer"] = "unet"
    """U-Net, or transformer over patches: its fields are dropout, dtype, remat, num_classes and net.transformer's."""
    transformer: PatchTransformer = PatchTransformer()
    """Options of the patch transformer."""


@dataclasses.dataclass(frozen=True)
class Text:
    layers: Annotated[int, "[0, 1024]"] = 0
    """Layers of the text encoder, a transformer; 0: not conditioned on texts."""
    width: Annotated[int, "[1, 65536]"] = 256
    """Channels of the text encoder, per byte of the text."""
    heads: Annotated[int, "[1, 65536]"] = 4
    """Attention heads of the text encoder."""
    length: Annotated[int, "[1, 65536]"] = 128
    """Maximum length of a text, in bytes."""


@dataclasses.dataclass(frozen=True)
class Condition:
    dropout: Annotated[float, "[0, 1)"] = 0.1
    """Probability of training an example without its condition, for classifier-free guidance."""
    templates: tuple[str, ...] = ()
    """Texts with {} for an image's label name or {caption} for its caption; (): captions, or label names."""
    super_resolution_factor: Annotated[int, "[0, 65536]"] = 0
    """Super-resolution: condition on each image, downsampled by this factor; 0: off."""
    paired: str = ""
    """Source of conditioning images, one for each image in the same order; "": none."""
    paired_channels: Annotated[int, "[0, 65536]"] = 0
    """Channels of the paired images; 0: as many as the images have."""


@dataclasses.dataclass(frozen=True)
class Loss:
    kind: Literal["simple", "hybrid", "variational"] = "simple"
    """L_simple; L_simple + vlb_scale * L_vlb with a learned variance; or the variational bound."""
    predicts: Literal["eps", "x0", "v", "mean"] = "eps"
    """Prediction target of the network."""
    space: Literal["predicted", "eps", "x0", "v"] = "predicted"
    """Quantity whose squared error is the simple loss; predicted: that which the network predicts."""
    weight: Literal["none", "snr", "snr_plus_one", "truncated_snr", "min_snr", "p2"] = "none"
    """Weighting of the squared error of x_0 by the signal-to-noise ratio; none: the error in loss.space."""
    min_snr_gamma: Annotated[float, "(0, 1e38]"] = 5.0
    """Upper limit gamma of the signal-to-noise ratio for min_snr."""
    p2_gamma: Annotated[float, "[0, 1000]"] = 1.0
    """Exponent gamma of p2."""
    learned_variance: bool = False
    """The network also predicts the reverse variance (always with hybrid)."""
    vlb_scale: Annotated[float, "[0, 1e38]"] = 1e-3
    """Weight of the variational bound in the hybrid loss."""
    stratified: bool = False
    """Draw the timesteps of a batch stratified over 1..T."""


@dataclasses.dataclass(frozen=True)
class Optim:
    learning_rate: Annotated[float, "[0, 1e38]"] = 2e-4
    """Learning rate of Adam after the warm-up."""
    warmup: CountOrZero = 5000
    """Steps of the linear warm-up of the learning rate."""
    decay: CountOrZero = 0
    """Steps until a cosine decay of the learning rate reaches 0, usually the steps of the run; 0: no decay."""
    clip: Annotated[float | None, "(0, inf]"] = 1.0
    """Gradient clipping: largest global norm; None or infinity: off."""
    b1: Annotated[float, "[0, 1)"] = 0.9
    """Adam beta1."""
    b2: Annotated[float, "[0, 1)"] = 0.999
    """Adam beta2."""
    eps: Annotated[float, "(0, 1e38]"] = 1e-8
    """Adam epsilon."""
    ema_decay: Annotated[float, "[0, 1)"] = 0.9999
    """Decay of the exponential moving average (EMA) of the parameters."""
    ema_warmup: bool = False
    """Limit the EMA decay to (1 + n) / (10 + n) at step n: for short runs."""
    ema_lengths: tuple[EmaLength, ...] = ()
    """Post-hoc EMA: relative lengths of power-function averages to keep, such as 0.05 0.1; (): none."""
    accumulate: Annotated[int, "[1, 1048576]"] = 1
    """Gradient accumulation: micro-batches per step and device."""
    max_skipped: Count = 10
    """Stop after this many steps in a row with a non-finite loss or gradient."""

    def __post_init__(self):
        if self.clip == math.inf:  # for which JSON has no word
            object.__setattr__(self, "clip", None)


@dataclasses.dataclass(frozen=True)
class SamplerFields:
    sampler: Literal["ancestral", "analytic", "ddim", "dpm_solver_pp", "unipc"] = "ancestral"
    """Sampler of the reverse process; analytic: ancestral with the optimal variance (Analytic-DPM)."""
    steps: Steps = 1000
    """Function evaluations (NFE) per image."""
    spacing: Spacing = "uniform"
    """Spacing of the sampling timesteps over 1..T."""
    variance_mix: Annotated[float, "[0, 1]"] = 1.0
    """Variance of ancestral sampling: 1: fixed-large, beta (the paper's CIFAR-10); 0: fixed-small, beta-tilde (its
    256x256 data); in between: log-linear.  Ignored with a learned variance."""
    eta: Annotated[float, "[0, 1]"] = 0.0
    """Noise of DDIM; 0: deterministic, 1: ancestral with beta-tilde."""
    order: Annotated[int, "[1, 3]"] = 2
    """Order of DPM-Solver++ and UniPC, 1 to 3."""
    clip: bool = True
    """Clip each predicted x_0 to [-1, 1]."""
    threshold: Annotated[float, "[0, 100]"] = 0.0
    """Dynamic thresholding instead of clipping: percentile of |x_0|; 0: off."""
    eps_scale: Annotated[float, "(0, 1000]"] = 1.0
    """Epsilon scaling: divide the predicted noise by this, before clipping."""
    guidance: Annotated[float, "[-1e6, 1e6]"] = 1.0
    """Classifier-free guidance scale; 0: unconditional, 1: conditional."""
    guidance_interval: tuple[Steps, ...] = ()
    """First and last timestep with guidance; (): all."""
    tile: Annotated[int, "[0, 65536]"] = 0
    """Images per device and function evaluation; the last bits of an image depend on it.  0: automatic."""


@dataclasses.dataclass(frozen=True)
class Sampling(SamplerFields):
    num: Annotated[int, "[1, 1048576]"] = 64
    """Images in the sample grids of training."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    images: Count = 256
    """Held-out images for evaluation during training (all, if there are fewer)."""
    strata: Steps = 16
    """Strata of the estimate of bits/dim: two function evaluations per image and stratum."""


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    """Seed of all random numbers of a run."""
    steps: Count = 800_000
    """Training steps."""
    batch: Annotated[int, "[1, 1048576]"] = 128
    """Images per step, summed over devices."""
    steps_per_call: Annotated[int, "[1, 10000]"] = 1
    """Steps per call of the compiled program: more than 1 if a step is shorter than its dispatch."""
    parallel: Parallel = "pmap"
    """All devices by jax.pmap, or by jax.jit of jax.shard_map on a named mesh; the numbers are the same."""
    shard_update: bool = False
    """Each device updates a share of the parameters and keeps only this share of the optimizer's state and the EMA."""
    log_every: Count = 100
    """Steps between lines of metrics.jsonl."""
    sample_every: CountOrZero = 10_000
    """Steps between sample grids and held-out evaluations; 0: only at the end."""
    save_every: Count = 5_000
    """Steps between checkpoints; the last step always has one."""
    keep: Count = 3
    """Number of checkpoints to keep."""
    snapshot_every: Count = 25_000
    """Steps between snapshots of the averages for post-hoc EMA (optim.ema_lengths), which are all kept."""
    data: Data = Data()
    schedule: Schedule = Schedule()
    net: Net = Net()
    text: Text = Text()
    condition: Condition = Condition()
    loss: Loss = Loss()
    optim: Optim = Optim()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config, or of a part of one, by the names of their flags, such as "net.channels"."""
    flat = {}
    for field in dataclasses.fields(values):
        name, value = f"{prefix}{field.name}", getattr(values, field.name)
        flat |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return flat
