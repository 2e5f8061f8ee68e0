"""The options of `ddpm-jax evaluate RUN COMMAND`, command by command."""

import dataclasses
from typing import Annotated, Literal

import tyro

from ddpm_jax import process
from ddpm_jax.config import flags, ranges
from ddpm_jax.config.fields import Spacing

Format = Literal["integer", "floor", "float"]
"""Samples rounded to the nearest level, as in files, or to the one below; or clipped floats."""

INCEPTION_WEIGHTS = "data/weights-inception-2015-12-05-6726825d.pth"
"""The default path of the weights of Inception."""


@dataclasses.dataclass(frozen=True)
class CommonFlags:
    """Flags of every evaluation."""

    model: tyro.conf.OmitArgPrefixes[flags.Weights] = flags.Weights()
    condition_request: tyro.conf.OmitArgPrefixes[flags.ConditionOptions] = flags.ConditionOptions()
    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    """Defaults: those of the run's config."""
    source: Annotated[str | None, tyro.conf.arg(name="data", help_behavior_hint="")] = None
    """Source of the images, for example "npz:PATH" (default: that of the config)."""
    out: flags.OptionalFlag[str] = None
    """Folder for the results (default: evaluation in the run)."""
    devices: flags.OptionalFlag[ranges.Devices] = None
    """On a CPU: number of JAX devices (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.DistributedOptions] = process.DistributedOptions()


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The options of a command."""

    common: tyro.conf.OmitArgPrefixes[CommonFlags] = CommonFlags()


@dataclasses.dataclass(frozen=True)
class ImageOptions(EvaluationOptions):
    """Images that a figure draws."""

    num: ranges.NumImages = 8
    """Number of images, one per row."""
    start: int = 0
    """The first image's index."""
    seed: int = 0
    """The seed of the images."""

    def describe_images(self) -> str:
        """For a legend: "images 0..7 of seed 0"."""
        return f"images {self.start}..{self.start + self.num - 1} of seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class SplitOptions(EvaluationOptions):
    """Images of a split for the bound."""

    split: Literal["train", "test"] = "test"
    """The split to evaluate."""
    num: flags.OptionalFlag[ranges.NumImages] = None
    """Only the first NUM images."""
    seed: int = 0
    """Seed of the noise of each x_t."""


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions(SplitOptions):
    """Bits per dimension of a split by the variational bound, with rate, distortion and prior.

    The exact bound computes every term, with one function evaluation per image and step.  --estimate draws two
    timesteps from each of that many strata instead.  --steps and --spacing give the bound of a reverse process with
    fewer steps; without --steps it has all T steps, even if the config samples with fewer.
    The exact bound of all steps also writes x0_errors.json to the run, for --sampler analytic, unless --out is given.
    """

    estimate: flags.OptionalFlag[ranges.Steps] = None
    """Strata of the estimate (default: the exact bound)."""
    decoder: Literal["discretized", "tanh"] = "discretized"
    """L_0's decoder: the exact normal CDF, or the original's approximation, at least 1e-12."""


@dataclasses.dataclass(frozen=True)
class SamplesOptions(EvaluationOptions):
    """Fréchet distance, precision and recall, density and coverage, and classes of samples against the training images.

    Features come from the package's classifier, for digits and MNIST, or from Inception.  The reference is the whole
    training split, without augmentation, or that of --reference.  With --sets the numbers are means over disjoint sets
    of --num samples, with the standard error of these means.
    """

    num: ranges.NumImages = 10_000
    """Samples in a set."""
    sets: ranges.Count = 1
    """Disjoint sets of samples."""
    seed: int = 0
    """The seed of the samples."""
    features: Literal["classifier", "inception"] = "classifier"
    """Feature extractor."""
    reference: str = "train"
    """The split to compare with, train or test; or an .npz file with mu and sigma, images arr_0, or both."""
    format: Format = "integer"
    """Samples rounded to levels, as in files, cut to the level below, or as floats, as the original measured."""
    samples: flags.OptionalFlag[str] = None
    """An .npz file with images `arr_0` to measure instead of drawing."""
    inception_weights: str = INCEPTION_WEIGHTS
    """The file of Inception's weights, as torch-fidelity publishes it."""


@dataclasses.dataclass(frozen=True)
class TableOptions(EvaluationOptions):
    """The likelihood and the sample metrics of several samplers in one table, with the held-out baseline.

    The rows are ancestral sampling over all steps, with both fixed variances or the learned one, and DDIM with few
    steps.  Rate and distortion are for ancestral sampling; a deterministic sampler has none.  The two baselines are
    held-out images, and random training images compared with the others.  Sets of samples are as large as the held-out
    split (at most 10,000), so that samples and baselines have the same bias.
    """

    num: flags.OptionalFlag[ranges.NumImages] = None
    """Samples in a set (default: as many as there are held-out images)."""
    sets: ranges.Count = 3
    """Disjoint sets of samples, for the error of each number."""
    ddim: tuple[ranges.Steps, ...] = (10, 50, 250)
    """Steps of the DDIM rows."""
    seed: int = 0
    """The seed of the samples, and of the bound's noise."""
    estimate: flags.OptionalFlag[ranges.Steps] = None
    """Strata for an estimate of the bound (default: exact)."""


@dataclasses.dataclass(frozen=True)
class NfeOptions(EvaluationOptions):
    """Sample metrics of several samplers against function evaluations (NFE) per image: a table and a figure.

    Each sampler takes one function evaluation a step.  The baseline is all held-out images.
    """

    num: ranges.NumImages = 1000
    """Samples in a set."""
    sets: ranges.Count = 3
    """Disjoint sets of samples, for the error of each number."""
    ancestral: tuple[ranges.Steps, ...] = (1000,)
    """Steps of ancestral sampling."""
    ddim: tuple[ranges.Steps, ...] = (10, 20, 50, 100)
    """Steps of DDIM."""
    dpm_solver_pp: tuple[ranges.Steps, ...] = (5, 10, 20)
    """Steps of DPM-Solver++."""
    unipc: tuple[ranges.Steps, ...] = (5, 10, 20)
    """Steps of UniPC."""
    spacings: tuple[Spacing, ...] = ("uniform", "quadratic")
    """Spacings of the timesteps; with all T steps there is only one."""
    seed: int = 0
    """The seed of the samples."""


@dataclasses.dataclass(frozen=True)
class EmaOptions(EvaluationOptions):
    """Sample metrics by length of the parameters' average (post-hoc EMA): a table and a figure.

    For runs that were trained with --optim.ema-lengths.  The other rows are the raw parameters, the exponential
    average of training, and all held-out images.
    """

    lengths: flags.OptionalFlag[tuple[ranges.EmaLength, ...]] = None
    """Relative lengths (default: some from 0.01 to 0.25, as far as the run's snapshots reach)."""
    num: ranges.NumImages = 1000
    """Samples in a set."""
    sets: ranges.Count = 3
    """Disjoint sets of samples, for the error of each number."""
    seed: int = 0
    """The seed of the samples, and of the bound's noise."""
    estimate: flags.OptionalFlag[ranges.Steps] = None
    """Also bits/dim of the held-out images, estimated with this many strata."""


@dataclasses.dataclass(frozen=True)
class ProgressiveOptions(ImageOptions):
    """Progressive generation: x_t of some images at evenly spaced timesteps, as a picture and an animation.

    The images are those of `ddpm-jax sample`; the JSON file has their hashes.
    """

    frames: Annotated[int, "[2, 1000000]"] = 11
    """Number of timesteps from the first to 0, evenly spaced over the sampler's steps; all, if there are fewer."""


@dataclasses.dataclass(frozen=True)
class PredictionsOptions(ImageOptions):
    """The x_0 predicted from x_t by timestep, and its error (figures 6, 10 and 14 of the paper).

    The prediction from the smallest timestep is the image itself.  --quality adds the Fréchet distance of the
    predictions at each timestep to the training images.
    """

    num: ranges.NumImages = 8
    """Number of images in the picture, one per row; errors are means over these, or over those of --quality."""
    frames: Annotated[int, "[2, 1000000]"] = 11
    """Number of timesteps, evenly spaced over the sampler's steps; all, if there are fewer."""
    quality: ranges.CountOrZero = 0
    """Number of images for the Fréchet distance at each timestep; 0: none."""
    features: Literal["classifier", "inception"] = "classifier"
    """Feature extractor of --quality."""
    inception_weights: str = INCEPTION_WEIGHTS
    """The file of Inception's weights, as torch-fidelity publishes it."""


@dataclasses.dataclass(frozen=True)
class StochasticOptions(ImageOptions):
    """Several samples that share one x_t, for decreasing t, and their differences (figure 7 of the paper).

    From each x_t of an image the reverse process runs several times.  The first run is the image's own trajectory; the
    others have their own noise from t on.
    """

    num: ranges.NumImages = 4
    times: flags.OptionalFlag[tuple[ranges.Steps, ...]] = None
    """The shared timesteps, in any order (default: the visited ones nearest to T, 3T/4, T/2 and T/4)."""
    continuations: Annotated[int, "[2, 65536]"] = 3
    """Number of images from each x_t, including the first run."""


@dataclasses.dataclass(frozen=True)
class InterpolationOptions(EvaluationOptions):
    """Interpolation of two images in the space of x_t (figure 8 of the paper; figure 9 with --coarse-to-fine).

    Images a and b are noised to x_t and x_t', mixed as (1 - lambda) x_t + lambda x_t', and decoded by the reverse
    process from t on.  The mixture is linear, as in the paper, so between the images its noise has a smaller variance
    than that of an x_t.  All lambda use the same noise, for both images and for the reverse process.
    """

    split: Literal["train", "test"] = "test"
    """The split of the images."""
    first: int = 0
    """Index of image a."""
    second: int = 1
    """Index of image b."""
    pairs: ranges.Count = 1
    """Number of pairs, one per row; both indices increase by two from pair to pair."""
    t: flags.OptionalFlag[ranges.Steps] = None
    """Timestep of the mixture (default: the visited one nearest to T/2); use a smaller one for images of few pixels."""
    coarse_to_fine: bool = False
    """One pair at decreasing timesteps: rows for those nearest to T, 7T/8, ... T/8, and for 0 (the pixels)."""
    columns: Annotated[int, "[2, 65536]"] = 11
    """Number of values of lambda, evenly spaced from 0 to 1."""
    seed: int = 0
    """The seed of the noise."""


@dataclasses.dataclass(frozen=True)
class RateDistortionOptions(SplitOptions):
    """Rate and distortion along the reverse process, by the exact bound (section 4.3, figure 5, table 4 of the paper).

    There is no codec.  The rates are those of an ideal code, which sends a sample of q to a receiver who has p in
    KL(q || p) bits, as the paper assumes.  An existing result of `likelihood` for the same images is reused.
    """


@dataclasses.dataclass(frozen=True)
class NeighboursOptions(EvaluationOptions):
    """Samples with their nearest training images, and a memorisation check (the figures of the paper's appendix).

    The picture shows those --rows of --num samples that are nearest to a training image, nearest first; this is not a
    random selection.  The memorisation check always uses pixels; --features is for the neighbours and distances in the
    picture.  If training flips images, flipped images are compared, too.
    """

    num: ranges.NumImages = 256
    """Samples to compare."""
    rows: ranges.Count = 8
    """Samples to show."""
    k: ranges.Count = 6
    """Training images to show for each."""
    seed: int = 0
    """The seed of the samples."""
    features: Literal["pixels", "classifier", "inception"] = "pixels"
    """Distances: root mean squares over pixels, or Euclidean between features."""
    inception_weights: str = INCEPTION_WEIGHTS
    """The file of Inception's weights, as torch-fidelity publishes it."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(EvaluationOptions):
    """A model card of the run: report.md with curves, pictures, all measured numbers, and a list of missing ones.

    The command collects files of the run and of its evaluations, and measures nothing.  report.md is written to the
    run's folder, or to --out.  Its links are relative, and files from elsewhere are copied to the folder `report` next
    to it, so the folder can be moved.
    """
