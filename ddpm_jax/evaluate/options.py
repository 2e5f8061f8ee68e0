"""The options of `ddpm-jax evaluate RUN COMMAND`, command by command."""

import dataclasses
from typing import Annotated, Literal

import tyro

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.config.fields import Spacing

Format = Literal["integer", "float"]
"""Samples rounded to levels, as in files, or clipped floats."""


@dataclasses.dataclass(frozen=True)
class CommonFlags:
    """Flags of every evaluation."""

    model: tyro.conf.OmitArgPrefixes[flags.Weights] = flags.Weights()
    condition_request: tyro.conf.OmitArgPrefixes[flags.ConditionOptions] = flags.ConditionOptions()
    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    """Default of each: the config of the run."""
    source: Annotated[str | None, tyro.conf.arg(name="data", help_behavior_hint="")] = None
    """Source of the images, if not that of the config: "digits" or "npz:PATH"."""
    out: flags.OptionalFlag[str] = None
    """Folder for the results (default: evaluation in the run)."""
    devices: flags.OptionalFlag[int] = None
    """On a CPU: number of JAX devices to divide it into (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.DistributedOptions] = process.DistributedOptions()


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The options of a command."""

    common: tyro.conf.OmitArgPrefixes[CommonFlags] = CommonFlags()


@dataclasses.dataclass(frozen=True)
class ImageOptions(EvaluationOptions):
    """Images that a figure draws."""

    num: int = 8
    """Images, a row each."""
    start: int = 0
    """The first image's index."""
    seed: int = 0
    """The seed of the images."""

    def describe_images(self) -> str:
        """For a legend: "images 0..7 of seed 0"."""
        return f"images {self.start}..{self.start + self.num - 1} of seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class SplitOptions(EvaluationOptions):
    """Images of a split whose likelihood is bounded."""

    split: Literal["train", "test"] = "test"
    """The split to evaluate."""
    num: flags.OptionalFlag[int] = None
    """Only the first NUM images."""
    seed: int = 0
    """Seed of the noise of each x_t."""


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions(SplitOptions):
    """Bits per dimension of a split by the variational bound, with rate, distortion and prior.

    The exact bound has every term of the chain, one function evaluation per image and step.  --estimate draws two times
    from each of so many strata of the steps instead.  --steps and --spacing bound the likelihood under a strided
    chain; without --steps it is the whole chain, even if the config samples with fewer steps.
    The exact bound of all steps also leaves x0_errors.json in the run, for --sampler analytic, unless --out is given.
    """

    estimate: flags.OptionalFlag[int] = None
    """Strata of the estimate (default: the exact bound)."""
    decoder: Literal["discretized", "tanh"] = "discretized"
    """L_0's decoder: the exact normal CDF, or the original's approximation, at least 1e-12."""


@dataclasses.dataclass(frozen=True)
class SamplesOptions(EvaluationOptions):
    """Fréchet distance, precision and recall, density and coverage, and classes of samples against the training images.

    Features are those of the classifier that comes with the package, for digits and MNIST, or of Inception (the extra
    `eval`).  The reference is the whole training split, unaugmented.  With --sets the numbers are means over disjoint
    sets of --num samples, with the standard error of these means.
    """

    num: int = 10_000
    """Samples in a set."""
    sets: int = 1
    """Disjoint sets of samples."""
    seed: int = 0
    """The seed of the samples."""
    features: Literal["classifier", "inception"] = "classifier"
    """Feature extractor."""
    reference: Literal["train", "test"] = "train"
    """The split to compare with."""
    format: Format = "integer"
    """Samples rounded to levels, as in files, or as floats, as the original measured."""
    samples: flags.OptionalFlag[str] = None
    """An .npz file with images `arr_0` to measure instead of drawing."""
    inception_weights: flags.OptionalFlag[str] = None
    """A file with the Inception network's weights (default: torch-fidelity downloads them)."""


@dataclasses.dataclass(frozen=True)
class TableOptions(EvaluationOptions):
    """The likelihood and the sample metrics of several samplers in one table, with the held-out baseline.

    Ancestral sampling over all steps with both fixed variances or the learned one, and DDIM with few steps.  Rate and
    distortion are those of the ancestral chain: a deterministic sampler has none.  Samples come in sets as large as the
    held-out split (at most 10,000), so that the baselines have the same bias: held-out images, and random training
    images against the others.
    """

    num: flags.OptionalFlag[int] = None
    """Samples in a set (default: as many as there are held-out images)."""
    sets: int = 3
    """Disjoint sets of samples, for the error of each number."""
    ddim: tuple[int, ...] = (10, 50, 250)
    """Steps of the DDIM rows."""
    seed: int = 0
    """The seed of the samples, and of the bound's noise."""
    estimate: flags.OptionalFlag[int] = None
    """Strata for an estimate of the bound (default: exact)."""


@dataclasses.dataclass(frozen=True)
class NfeOptions(EvaluationOptions):
    """Sample metrics of several samplers against function evaluations (NFE) per image: a table and a figure.

    Each sampler takes one function evaluation a step.  The baseline is all held-out images.
    """

    num: int = 1000
    """Samples in a set."""
    sets: int = 3
    """Disjoint sets of samples, for the error of each number."""
    ancestral: tuple[int, ...] = (1000,)
    """Steps of ancestral sampling."""
    ddim: tuple[int, ...] = (10, 20, 50, 100)
    """Steps of DDIM."""
    dpm_solver_pp: tuple[int, ...] = (5, 10, 20)
    """Steps of DPM-Solver++."""
    unipc: tuple[int, ...] = (5, 10, 20)
    """Steps of UniPC."""
    spacings: tuple[Spacing, ...] = ("uniform", "quadratic")
    """Spacings of the times; a chain of all steps has only one."""
    seed: int = 0
    """The seed of the samples."""


@dataclasses.dataclass(frozen=True)
class ProgressiveOptions(ImageOptions):
    """Progressive generation: x_t of some images at evenly spread times, as a picture and an animation.

    The images are those that sample.py draws; the JSON file has their hashes, as its manifest has.
    """

    frames: int = 11
    """Times, from the first of the chain to 0, evenly spread over its steps; all, if it has fewer."""


@dataclasses.dataclass(frozen=True)
class PredictionsOptions(ImageOptions):
    """The x_0 predicted from x_t over time, and how far it is from the image (figures 6, 10 and 14 of the paper).

    The last prediction, from the last time above 0, is the image itself.  With --quality also the Fréchet distance
    of the predictions at each time to the training images.
    """

    num: int = 8
    """Images in the picture, a row each; the errors are means over them, or over those of --quality."""
    frames: int = 11
    """Times to predict from, evenly spread over the chain's steps; all, if it has fewer."""
    quality: int = 0
    """Images for the Fréchet distance at each time; 0 leaves it out."""
    features: Literal["classifier", "inception"] = "classifier"
    """Feature extractor of --quality."""
    inception_weights: flags.OptionalFlag[str] = None
    """A file with the Inception network's weights (default: torch-fidelity downloads them)."""


@dataclasses.dataclass(frozen=True)
class StochasticOptions(ImageOptions):
    """Several images that share one x_t, for falling t, and how much they differ (figure 7 of the paper).

    From each x_t of an image's chain the reverse process runs several times.  The first time it is the chain itself and
    ends in the image that sample.py draws; the others have their own noise from t on.
    """

    num: int = 4
    times: flags.OptionalFlag[tuple[int, ...]] = None
    """The shared times, in any order (default: the visited times nearest to T, 3T/4, T/2 and T/4)."""
    continuations: int = 3
    """Images from each x_t, the chain's own among them."""


@dataclasses.dataclass(frozen=True)
class InterpolationOptions(EvaluationOptions):
    """Interpolation of two images in the space of x_t (figure 8 of the paper; figure 9 with --coarse-to-fine).

    Images a and b are noised to x_t and x_t', mixed as (1 - lambda) x_t + lambda x_t', and decoded by the reverse
    process from t on.  The mixture is linear, as in the paper: in between, its noise has a variance below that of an
    x_t.  The noise, of both images and of the reverse process, is the same for all lambda.
    """

    split: Literal["train", "test"] = "test"
    """The split of the images."""
    first: int = 0
    """Index of image a."""
    second: int = 1
    """Index of image b."""
    pairs: int = 1
    """Pairs, a row each; every further pair has both indices two higher."""
    t: flags.OptionalFlag[int] = None
    """The time of the mixture (default: the visited time nearest to T/2); images of few pixels want a smaller one."""
    coarse_to_fine: bool = False
    """One pair at falling times instead: a row for each of those nearest to T, 7T/8, ... T/8, and 0, the pixels."""
    columns: int = 11
    """Values of lambda, evenly from 0 to 1."""
    seed: int = 0
    """The seed of the noise."""


@dataclasses.dataclass(frozen=True)
class RateDistortionOptions(SplitOptions):
    """Rate and distortion along the chain, from the exact bound (section 4.3, figure 5 and table 4 of the paper).

    No codec is run: the rates are those of an ideal one, given a procedure that sends a sample of q
    to a receiver who knows p in KL(q || p) bits, as the paper assumes.  A result of the likelihood command for the same
    images is reused.
    """


@dataclasses.dataclass(frozen=True)
class NeighboursOptions(EvaluationOptions):
    """Samples with their nearest training images, and a memorisation check (the figures of the paper's appendix).

    Of --num samples the picture shows the --rows nearest to a training image, nearest first: the most suspicious, not
    a random selection.  The verdict is always about pixels; --features is the space of the neighbours and distances in
    the picture.  Where training mirrors images, mirror images count.
    """

    num: int = 256
    """Samples to compare."""
    rows: int = 8
    """Samples to show."""
    k: int = 6
    """Training images to show for each."""
    seed: int = 0
    """The seed of the samples."""
    features: Literal["pixels", "classifier", "inception"] = "pixels"
    """Distances: root mean squares over pixels, or Euclidean between features."""
    inception_weights: flags.OptionalFlag[str] = None
    """A file with the Inception network's weights (default: torch-fidelity downloads them)."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(EvaluationOptions):
    """A model card of the run: report.md with curves, pictures, all measured numbers, and a list of missing ones.

    It collects the files of the run and of its evaluation; nothing is measured.  It goes into the run's folder, or with
    --out beside the results there.  Links are relative, and files from elsewhere are copied to a folder `report` next
    to it, so the folder can be moved.
    """
