"""Evaluation context: the model of a run, the images to compare with, and the folder for results."""

import pathlib
import platform
from typing import Any, Literal, NamedTuple

from ddpm_jax import conditions, data, pipeline
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.options import CommonFlags


class Interrupted(Exception):
    """An evaluation was interrupted; what is finished is kept, and the same command continues."""


class EvaluationContext(NamedTuple):
    """A model, the flags, and the folder for results."""

    model: pipeline.Pipeline
    flags: CommonFlags
    out: pathlib.Path

    def with_sampling(self, **sampling: Any) -> "EvaluationContext":
        """The context with other fields of `config.Sampling`; compiled programs are shared where possible."""
        return self._replace(model=self.model.with_request(self.model.request, **sampling))

    def made_with(self) -> dict[str, Any]:
        """Run, versions, machine and tile size, kept beside the numbers."""
        manifest = self.model.manifest()
        return {
            "run": str(self.model.workdir),
            "versions": manifest["versions"] | {"python": platform.python_version()},
            "machine": manifest["machine"],
            "tile": self.model.tile,
        }

    def weights_fields(self) -> protocol.Protocol:
        """The fields of a protocol that name the weights."""
        return {
            "weights": self.model.weights,
            "ckpt": f"{self.model.fingerprint.removeprefix('sha256:')[:12]} step {self.model.step}",
        }


class Split(NamedTuple):
    """Images of a data set: their name with the hash of their content, and the integers [n, H, W, C]."""

    name: str
    images: data.Pixels

    def describe(self) -> str:
        """Name and number of images."""
        return f"{self.name} n={len(self.images)}"


def open_context(run: str, flags_given: CommonFlags) -> EvaluationContext:
    """The evaluation context of a run's folder and flags; errors as `pipeline.Pipeline`, or if images are floats."""
    which, sampling = flags_given.model, flags_given.sampling
    model = pipeline.Pipeline(run, step=which.checkpoint, weights=which.weights, sampling=sampling.overrides())
    model = model.with_request(pipeline.parse_request(flags_given.condition_request, sampling, model))
    _ = model.integer_levels  # raises for floating-point images
    out = pathlib.Path(flags_given.out) if flags_given.out else model.workdir / "evaluation"
    return EvaluationContext(model, flags_given, out)


def load_images(context: EvaluationContext, stream: bool | None = None) -> data.Dataset:
    """The run's data set, split as in training; `stream` as in `data.load`.

    Raises:
        FileNotFoundError, ValueError: as `data.load`, or if its images differ from the model's in shape or levels.
    """
    config, model = context.model.config.data, context.model
    loaded = conditions.load_images(config, source=context.flags.source or config.source, stream=stream)
    check_comparable(loaded.name, loaded.train.shape[1:], loaded.levels, model)
    return loaded


def check_comparable(
    name: str, shape: tuple[int, ...], levels: int | data.ValueRange, model: pipeline.Pipeline
) -> None:
    """Raises a ValueError if images of this shape and number of levels cannot be compared with the model's."""
    if tuple(shape) != model.shape or levels != model.levels:
        ours, theirs = "x".join(map(str, model.shape)), "x".join(map(str, shape))
        raise ValueError(
            f"{name} has images {theirs} of {levels} levels, but {model.workdir} makes images {ours} of "
            f"{model.levels} levels: sets of different sizes, channels or levels cannot be compared"
        )


def select_split(images: data.Dataset, side: Literal["train", "test"], num: int | None = None) -> Split:
    """A split of a data set, or its first `num` images; a ValueError if it has fewer images."""
    whole = images.train if side == "train" else images.test
    if num is not None and not 1 <= num <= len(whole):
        raise ValueError(f"--num must be 1 to {len(whole)}, the images in {images.name}'s {side} split, got {num}")
    stem = "digits" if images.name == "digits" else pathlib.PurePath(images.name.partition(":")[2]).stem
    return Split(f"{stem}-{side} sha {protocol.data_hash(whole)}", whole if num is None else whole[:num])
