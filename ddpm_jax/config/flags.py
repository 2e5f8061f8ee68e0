"""Flags that several programs share: weights, fine-tuning, conditions, sampling, editing; of training; of prepare."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ddpm_jax import config as configs
from ddpm_jax.config import ranges
from ddpm_jax.config.fields import SamplerFields

T = TypeVar("T")
OptionalFlag = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""An optional flag whose help text states its default itself."""

WeightsName = Annotated[str, tyro.conf.arg(metavar="ema|raw|ema:LENGTH")]
"""A flag for which weights of a run, see `ranges.ema_length`."""

MAY_BE_EMPTY = ("--text", "--condition.paired", "--condition.templates", "--flags")
"""Flags that may have an empty value."""


def parse(options: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The options that a command line gives; a word that is none of them ends the process, with status 2.

    Raises:
        ValueError: as `check_words` and `ranges.check_flags`.
    """
    parsed = tyro.cli(options, prog=prog, args=check_words(argv), config=(tyro.conf.DisallowNone,))
    ranges.check_flags(parsed)
    return parsed


def parse_with_config(options: type[T], argv: Sequence[str], *, usage: str) -> T:
    """The options of a command line whose first word names a config; flags replace its fields.

    Args:
        options: a dataclass with a field `config`.
        usage: "COMMAND CONFIG ...", for help and errors.

    Raises:
        ValueError: if no config is named; as `config.load`, `check_words` and `ranges.check_flags`.
    """
    default, words = configs.Config(), check_words(argv)
    if words and not words[0].startswith("-"):
        default, words = configs.load(words[0]), words[1:]
    elif "-h" not in words and "--help" not in words:
        raise ValueError(f"name a config first: {usage.replace('CONFIG', 'digits').removesuffix(' [options]')}")
    parsed = tyro.cli(options, prog=usage, args=words, default=options(**{"config": default}))
    ranges.check_flags(parsed)
    return parsed


def check_words(argv: Sequence[str]) -> list[str]:
    """A command line without empty words, which a shell makes of variables that are not set.

    Raises:
        ValueError: naming the flag that an empty word follows.
    """
    flag = ""
    for argument in argv:
        name, equals, value = argument.partition("=")
        flag = name if name.startswith("--") else flag
        empty = not (value if equals and argument.startswith("--") else argument).strip()
        if empty and flag not in MAY_BE_EMPTY:
            raise ValueError(f"{flag or 'an argument'} is empty: leave it out, or check that its shell variable is set")
    return list(argv)


@dataclasses.dataclass(frozen=True)
class Weights:
    weights: WeightsName = "ema"
    """Moving average (EMA) of the parameters, the raw parameters, or a post-hoc EMA of a relative length."""
    checkpoint: OptionalFlag[ranges.CountOrZero] = None
    """The checkpoint's step (default: the newest)."""


@dataclasses.dataclass(frozen=True)
class InitFrom:
    init_from: OptionalFlag[str] = None
    """Fine-tune: start from the parameters of the run in this folder."""
    init_weights: WeightsName = "ema"
    """With --init-from: which of its weights, as --weights of the other programs."""
    init_checkpoint: OptionalFlag[ranges.CountOrZero] = None
    """With --init-from: the checkpoint's step (default: the newest)."""


@dataclasses.dataclass(frozen=True)
class TrackingOptions:
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that show the lines of metrics.jsonl: TensorBoard, Weights & Biases, or both."""
    profile: OptionalFlag[str] = None
    """START:STOP: write a trace of these training steps to the run's folder, for XProf or TensorBoard."""


@dataclasses.dataclass(frozen=True)
class ConditionOptions:
    label: OptionalFlag[str] = None
    """Label of all images, a name or a number."""
    labels: OptionalFlag[str] = None
    """Labels that images take in turn: names or numbers separated by commas, or "all" labels of training."""
    text: tuple[str, ...] = ()
    """Text of all images, or several that images take in turn; "": unconditional."""
    image: tuple[str, ...] = ()
    """Files of conditioning images, taken in turn: low-resolution images, or the other images of pairs."""


def optional_fields(cls: type[T]) -> type[T]:
    """The dataclass with None for each field that is not given."""
    assert dataclasses.is_dataclass(cls)
    optional = [(field.name, OptionalFlag[field.type], None) for field in dataclasses.fields(cls)]
    return dataclasses.make_dataclass(cls.__name__, optional, bases=(cls,), frozen=True)


@optional_fields
@dataclasses.dataclass(frozen=True)
class SamplingOptions(SamplerFields):
    """The fields of `config.Sampling` as flags, except the size of training's grids; None for those not given."""

    def overrides(self) -> dict[str, Any]:
        """The fields of `config.Sampling` that were given, with their values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class EditOptions:
    inpaint: OptionalFlag[str] = None
    """Inpainting: an image in the format of the run; pixels where --mask is not 0 are kept exactly."""
    mask: OptionalFlag[str] = None
    """Mask of one channel: 0 for pixels to generate, one other value for known pixels."""
    resample: OptionalFlag[ranges.Steps] = None
    """Inpainting: passes through each section of the reverse process (RePaint; default: 1)."""
    jump: OptionalFlag[ranges.Steps] = None
    """Inpainting: steps per section (default: 10)."""
    cg_steps: OptionalFlag[Annotated[int, "[0, 1000000]"]] = None
    """Conjugate-gradient steps that condition each prediction on --inpaint (default: 0) or --measure (default: 5)."""
    measure: OptionalFlag[str] = None
    """Images with a given measurement, blur:SIGMA (in pixels), downsample:FACTOR or grey."""
    original: OptionalFlag[str] = None
    """Measurement: an image in the format of the run, which is measured."""
    measurement: OptionalFlag[str] = None
    """Measurement: the result itself, a blurred, small or grey image of the run's type and levels."""
    noise: OptionalFlag[Annotated[float, "[0, 1000]"]] = None
    """Measurement: standard deviation of its noise, for images in [-1, 1]; added to that of --original (default: 0)."""
    init_image: OptionalFlag[str] = None
    """Image-to-image (SDEdit): an image in the format of the run; sampling starts from it, noised."""
    strength: OptionalFlag[Annotated[float, "(0, 1]"]] = None
    """Strength of --init-image in (0, 1]: 1 keeps almost nothing of the image (default: 0.6)."""
    interpolate: OptionalFlag[tuple[str, str]] = None
    """Interpolation: two images in the format of the run; --num images between them, with --sampler ddim."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Writes MNIST or CIFAR-10 to OUT/mnist.npz or OUT/cifar10.npz, or other images to a data set for `tfds:NAME@OUT`.

    The same command continues after an interruption, and does nothing if the result exists.  The files of MNIST and
    CIFAR-10 are checked against the published MD5; all options except --out and --from are for other images.
    """

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """"mnist", "cifar10", or a source of other images: "folder:PATH", "npz:PATH", "npy:PATH", "tfds:NAME", "digits",
    "pairs", "scenes"."""
    out: str
    """The folder for the result; TFDS's default is ~/tensorflow_datasets."""
    archives: Annotated[str | None, tyro.conf.arg(name="from", metavar="FOLDER|tfds:NAME", help_behavior_hint="")] = (
        None
    )
    """The folder with the downloaded files of MNIST or CIFAR-10 (default: OUT), or a data set of TFDS."""
    name: OptionalFlag[str] = None
    """Name of the TFDS data set: lower-case letters, digits and _."""
    resolution: OptionalFlag[Annotated[int, "[1, 65536]"]] = None
    """Centre-crop images and scale them to this height and width, with an antialiased filter."""
    shards: OptionalFlag[Annotated[int, "[1, 99999]"]] = None
    """Number of files of the training split (default: about 256 MB of decoded images per file)."""
    held_out: Annotated[float, "(0, 1)"] = 0.1
    """Share of the images for the split test, if the source has none."""
    levels: OptionalFlag[Annotated[int, "[2, 65536]"]] = None
    """Number of values of a pixel, if not 256 or 65536."""
    range: tuple[Annotated[float, "[-1e38, 1e38]"], ...] = ()
    """Lowest and highest value of floating-point images."""
    skip_bad: bool = False
    """Leave out and list images that cannot be read, instead of ending with an error."""
