"""Sampling from images that a user gives: inpainting, measurements, SDEdit and interpolation."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import data, denoisers, editing, keys, measurements
from ddpm_jax.config import flags
from ddpm_jax.pipeline import tiles, user_images
from ddpm_jax.pipeline.pipeline import Pipeline
from ddpm_jax.pipeline.user_images import image_hash

EDITS = "inpaint", "measure", "init_image", "interpolate"
INVERSION_ITERATIONS = 5  # function evaluations for each step towards the noise


class Edit(NamedTuple):
    """Sampling that begins from images; it draws as its model does."""

    pipe: Pipeline  # the trained network
    sampler_factory: tiles.SamplerFactory  # ((pipe.inputs, inputs), tile) -> the sampler
    times: np.ndarray  # that it visits
    inputs: Any  # arrays, which the compiled program takes as arguments: another image is no other program
    # the image whose pixels come out as they are, as the data have it, and where: bool; None for neither
    known_pixels: tuple[np.ndarray, np.ndarray] | None
    record: dict[str, Any]  # the flags, and the sha256 of each file's pixels, for the manifest
    pictures: Sequence[np.ndarray] = ()  # images before the samples in the grid, as the data have them

    @property
    def tile(self) -> int:
        """The model's."""
        return self.pipe.tile

    def draw(self, *, seed: int, start: int, num: int, batch: int | None = None) -> Iterator[tiles.Drawn]:
        """As `Pipeline.draw`."""
        options = self.record["flags"]
        name = next(name for name in EDITS if name in options), options.get("cg_steps", 0), options.get("measure")
        inputs = self.pipe.inputs, self.inputs
        return self.pipe.draw_with(
            self.sampler_factory, name, inputs, self.times, seed=seed, start=start, num=num, batch=batch
        )

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        """As `Pipeline.to_pixels`; known floating-point pixels are as given, which [-1, 1] and back would round."""
        drawn = self.pipe.to_pixels(x)
        if self.known_pixels is None or not isinstance(self.pipe.levels, data.ValueRange):
            return drawn
        known_image, mask = self.known_pixels
        return np.where(mask, known_image, drawn)

    def manifest(self) -> dict[str, Any]:
        """As `Pipeline.manifest`."""
        return self.pipe.manifest() | {"times": self.times.tolist(), "edit": self.record}


def make_edit(pipe: Pipeline, options: flags.EditOptions, *, start: int, num: int) -> Edit | None:
    """The edit that flags ask for, None if they ask for none.

    Args:
        start, num: of the images, of which those between two are a series.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if flags contradict one another, or a file is no image of the run's.
    """
    requested = [name for name in EDITS if getattr(options, name) is not None]
    if len(requested) > 1:
        raise ValueError(f"{' and '.join(map(_flag, requested))} are different things: take one of them")
    for name, needed in {"mask": ["inpaint"], "resample": ["inpaint"], "jump": ["inpaint"],
                         "cg_steps": ["inpaint", "measure"], "original": ["measure"], "measurement": ["measure"],
                         "noise": ["measure"], "strength": ["init_image"]}.items():  # fmt: skip
        if getattr(options, name) is not None and not set(requested) & set(needed):
            raise ValueError(f"{_flag(name)} needs {' or '.join(map(_flag, needed))}, which is not given")
    if options.inpaint is not None:
        return _inpaint(pipe, options)
    if options.measure is not None:
        return _measure(pipe, options, options.measure)
    if options.init_image is not None:
        return _sdedit(pipe, options)
    return None if options.interpolate is None else _interpolate(pipe, options, start, num)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def edit_from_manifest(pipe: Pipeline, manifest: dict[str, Any]) -> Edit | None:
    """The edit that a manifest records, None if it records none.

    Raises:
        FileNotFoundError: if a file is no longer there.
        ValueError: if the manifest is damaged, or a file has other pixels now.
    """
    stored = manifest.get("edit")
    if stored is None:
        return None
    try:
        flag_values = configs.current_names(dict(stored["flags"]), flags.EditOptions)
        if "interpolate" in flag_values:
            flag_values["interpolate"] = tuple(flag_values["interpolate"])
        options, then = flags.EditOptions(**flag_values), dict(stored["sha256"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"the manifest is damaged in its record of an edit: {error!r}") from error
    found = make_edit(pipe, options, start=manifest["start"], num=manifest["num"])
    now = found.record["sha256"] if found else {}
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            digests = f"sha256 {now.get(name)}, was {then.get(name)}"
            raise ValueError(f"{name} has other pixels than when these images were made: {digests}")
    return found


def read_mask(pipe: Pipeline, path: str) -> np.ndarray:
    """The mask of known pixels, bool [H, W, 1] or [H, W, C]: True where a file of 0 and one other value is not 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it has another size, or more values.
    """
    mask = user_images.read_pixels("--mask", path)
    wanted = (*pipe.shape[:-1], 1)
    if mask.shape not in (wanted, pipe.shape):
        hint = f"expected the images' size with one channel, {'x'.join(map(str, wanted))}, or all of theirs"
        raise ValueError(f"--mask {path}: {user_images.describe_format(mask.shape, mask.dtype)}; {hint}")
    values = np.unique(mask)
    if np.count_nonzero(values) > 1:
        hint = "expected 0 where a pixel is generated and one other value where it is known (there are no soft masks)"
        raise ValueError(f"--mask {path}: {len(values)} different values; {hint}")
    return mask != 0


def _inpaint(pipe: Pipeline, options: flags.EditOptions) -> Edit:
    if options.mask is None:
        raise ValueError("--inpaint needs a --mask: an image that is 0 where pixels are generated")
    image, mask = user_images.read_image(pipe, "--inpaint", str(options.inpaint)), read_mask(pipe, options.mask)
    resample = 1 if options.resample is None else options.resample
    jump, cg_steps = 10 if options.jump is None else options.jump, options.cg_steps or 0
    times = editing.repaint_times(pipe.times, jump=jump, repeats=resample)

    def sampler_factory(both, tile):
        inputs, (known, where) = both

        def transform(denoise):
            A = measurements.known_pixels(where)
            denoise = measurements.condition_on_measurement(pipe.schedule, denoise, A, A(known), iterations=cg_steps)
            return denoisers.limit_x0(pipe.schedule, denoise, lambda x0: jnp.where(where, known, x0))

        sampler = pipe.conditioned_sampler(inputs, tile.condition, transform if cg_steps else None)
        return editing.inpainting(pipe.schedule, sampler, known, where)

    inputs = np.asarray(data.normalize(image[None], pipe.levels)), np.broadcast_to(mask, pipe.shape)[None]
    settings = dataclasses.replace(options, resample=resample, jump=jump, cg_steps=cg_steps)
    record = _edit_record(settings, {options.inpaint: image, options.mask: mask})
    return Edit(pipe, sampler_factory, times, inputs, (image, mask), record)


def read_operator(text: str, shape: tuple[int, ...]) -> measurements.LinearMap:
    """The measurement that --measure names, of images of a shape.

    Raises:
        ValueError: if there is none of this name, or none of these images.
    """
    sides = shape[:-1]
    if text == "grey":
        if shape[-1] != 3:
            raise ValueError(f"--measure grey is for images of 3 channels, and this run's have {shape[-1]}")
        return measurements.grey
    if match := re.fullmatch(r"downsample:([0-9]{1,9})", text):
        factors = [n for n in range(1, min(sides) + 1) if not any(side % n for side in sides)]
        if int(match[1]) not in factors:
            raise ValueError(
                f"--measure {text}: the factor must divide the images' sides, {'x'.join(map(str, sides))}: it is one "
                f"of {', '.join(map(str, factors))}"
            )
        return measurements.downsample(int(match[1]))
    if (match := re.fullmatch(r"blur:([0-9]*\.?[0-9]+)", text)) and 0 < float(match[1]) <= max(sides):
        return measurements.blur(float(match[1]))
    hint = f"expected blur:SIGMA, a standard deviation above 0 and up to {max(sides)} pixels, downsample:FACTOR or grey"
    raise ValueError(f"--measure {text}: {hint}")


def _measure(pipe: Pipeline, options: flags.EditOptions, name: str) -> Edit:
    A = read_operator(name, pipe.shape)
    if (options.original is None) == (options.measurement is None):
        raise ValueError(
            "--measure needs one of --original, an image of which the program takes the measurement, and "
            "--measurement, the measurement itself"
        )
    noise, cg_steps = options.noise or 0.0, 5 if options.cg_steps is None else options.cg_steps
    if cg_steps < 1:
        raise ValueError("--measure needs --cg-steps of at least 1, got 0: without them nothing is measured")
    shape = jax.eval_shape(A, jax.ShapeDtypeStruct((1, *pipe.shape), jnp.float32)).shape
    if options.original is not None:
        path, image = options.original, user_images.read_image(pipe, "--original", options.original)
        key = jax.random.fold_in(keys.from_seed(0), keys.MEASUREMENT_STREAM)  # one measurement for all seeds
        y = A(data.normalize(image[None], pipe.levels))
        y = np.asarray(y + noise * keys.standard_normal(key[None], y))
        pictures = [image, pipe.to_pixels(y)[0]]
    else:
        path = str(options.measurement)
        image = user_images.read_image(pipe, "--measurement", path, shape[1:])
        y, pictures = np.asarray(data.normalize(image[None], pipe.levels)), [image]

    def sampler_factory(both, tile):
        inputs, (y, noise) = both

        def transform(denoise):
            return measurements.condition_on_measurement(pipe.schedule, denoise, A, y, noise, iterations=cg_steps)

        return pipe.conditioned_sampler(inputs, tile.condition, transform)

    record = _edit_record(dataclasses.replace(options, noise=noise, cg_steps=cg_steps), {path: image})
    pictures = [user_images.enlarge(picture, pipe.shape) for picture in pictures]
    return Edit(pipe, sampler_factory, pipe.times, (y, np.float32(noise)), None, record, pictures)


def _sdedit(pipe: Pipeline, options: flags.EditOptions) -> Edit:
    image = user_images.read_image(pipe, "--init-image", str(options.init_image))
    strength = 0.6 if options.strength is None else options.strength
    times = editing.truncate_times(pipe.times, strength)

    def sampler_factory(both, tile):
        inputs, picture = both
        return editing.sdedit(pipe.schedule, pipe.conditioned_sampler(inputs, tile.condition), picture)

    inputs, record = np.asarray(data.normalize(image[None], pipe.levels)), {options.init_image: image}
    record = _edit_record(dataclasses.replace(options, strength=strength), record)
    return Edit(pipe, sampler_factory, times, inputs, None, record)


def _interpolate(pipe: Pipeline, options: flags.EditOptions, start: int, num: int) -> Edit:
    """Images i = 0 ... num - 1 decode the point i / (num - 1) of the arc between the two inverted images."""
    c = pipe.config.sampling
    if c.sampler != "ddim" or c.eta != 0:
        raise ValueError("--interpolate needs a deterministic sampler: add --sampler ddim --eta 0")
    if start != 0 or num < 2:
        raise ValueError(f"--interpolate makes a series from the first image to the second: --start must be 0 "
                         f"and --num at least 2, got {start} and {num}")  # fmt: skip
    first_path, second_path = options.interpolate or ("", "")
    pair = [user_images.read_image(pipe, "--interpolate", path) for path in (first_path, second_path)]
    invert = jax.jit(
        lambda params, x: editing.invert(
            pipe.schedule, pipe.denoiser(params), x, pipe.times, iterations=INVERSION_ITERATIONS
        )
    )
    latents = np.asarray(invert(pipe.params, data.normalize(np.stack(pair), pipe.levels)))

    def sampler_factory(both, tile):
        inputs, (ends, last) = both
        weight = jnp.clip(tile.indices.astype(jnp.float32) / last, 0, 1)
        a, b = (jnp.broadcast_to(end, (len(tile.indices), *pipe.shape)) for end in ends)
        sampler = pipe.conditioned_sampler(inputs, tile.condition)
        return sampler._replace(init=lambda _, t: sampler.init(editing.slerp(a, b, weight), t))

    record = _edit_record(options, {first_path: pair[0], second_path: pair[1]})
    return Edit(pipe, sampler_factory, pipe.times, (latents, np.float32(num - 1)), None, record)


def _edit_record(options: flags.EditOptions, files: dict[Any, np.ndarray]) -> dict[str, Any]:
    flag_values = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    return {"flags": flag_values, "sha256": {name: image_hash(pixels) for name, pixels in files.items()}}
