"""What `sample.py` makes of images: they are read and checked here, and become the sampler's."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, edits, generate, samplers
from ddpm_jax.config import flags
from ddpm_jax.runs import pictures
from ddpm_jax.runs.model import Model
from ddpm_jax.runs.pictures import image_hash

INVERSION = 5  # network calls for each step towards the noise


class Edit(NamedTuple):
    """Sampling that begins from images; it draws as its model does.

    Attributes:
        model: the trained network.
        chain: ((model.inputs, inputs), tile) -> sampler and times, see `generate.program`.
        times: that it visits.
        inputs: arrays, which the compiled program takes as arguments: another image is no other program.
        known: the image whose pixels come out as they are, as the data have it, and where: bool.  None for neither.
        record: the flags, and the sha256 of each file's pixels, for the manifest.
    """

    model: Model
    chain: Callable[[Any, generate.Tile], tuple[samplers.Sampler, Any]]
    times: np.ndarray
    inputs: Any
    known: tuple[np.ndarray, np.ndarray] | None
    record: dict[str, Any]

    @property
    def tile(self) -> int:
        """The model's."""
        return self.model.tile

    def draw(self, *, seed: int, start: int, num: int, batch: int | None = None) -> Iterator[generate.Drawn]:
        """As `Model.draw`."""
        given = self.record["flags"]
        name = next(name for name in ("inpaint", "init", "between") if name in given), given.get("correct", 0)
        both = self.model.inputs._replace(times=self.times), self.inputs
        return self.model.draw_by(self.chain, name, both, seed=seed, start=start, num=num, batch=batch)

    def images(self, x: np.ndarray) -> np.ndarray:
        """As `Model.images`; floating-point pixels that are known are as given, which [-1, 1] and back would round."""
        drawn = self.model.images(x)
        if self.known is None or not isinstance(self.model.levels, data.Range):
            return drawn
        given, mask = self.known
        return np.where(mask, given, drawn)

    def manifest(self) -> dict[str, Any]:
        """As `Model.manifest`."""
        return self.model.manifest() | {"times": self.times.tolist(), "edit": self.record}


def edit(model: Model, asked: flags.Edits, *, start: int, num: int) -> Edit | None:
    """The edit that flags ask for, None if they ask for none.

    Args:
        start, num: of the images, of which those between two are a series.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if flags contradict one another, or a file is no image of the run's.
    """
    chosen = [name for name in ("inpaint", "init", "between") if getattr(asked, name) is not None]
    if len(chosen) > 1:
        raise ValueError(f"--{' and --'.join(chosen)} are different things: take one of them")
    for name, to in {"mask": "inpaint", "resample": "inpaint", "jump": "inpaint", "correct": "inpaint",
                     "strength": "init"}.items():  # fmt: skip
        if getattr(asked, name) is not None and to not in chosen:
            raise ValueError(f"--{name} belongs to --{to}, which is not given")
    if asked.inpaint is not None:
        return _inpaint(model, asked)
    if asked.init is not None:
        return _init(model, asked)
    return None if asked.between is None else _between(model, asked, start, num)


def repeated(model: Model, manifest: dict[str, Any]) -> Edit | None:
    """The edit that a manifest tells of, None if it tells of none.

    Raises:
        FileNotFoundError: if a file is no longer there.
        ValueError: if the manifest is damaged, or a file has other pixels now.
    """
    stored = manifest.get("edit")
    if stored is None:
        return None
    try:
        given: dict[str, Any] = dict(stored["flags"])
        if "between" in given:
            given["between"] = tuple(given["between"])
        asked, then = flags.Edits(**given), dict(stored["sha256"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"the manifest is damaged in what it says of edits: {error!r}") from error
    found = edit(model, asked, start=manifest["start"], num=manifest["num"])
    now = found.record["sha256"] if found else {}
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{name} has other pixels than when these images were made: sha256 {now.get(name)}, was "
                f"{then.get(name)}"
            )
    return found


def read_mask(model: Model, path: str) -> np.ndarray:
    """Where the pixels are known, bool [H, W, 1] or [H, W, C]: what is not 0 in a file of 0 and one other value.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it has another size, or more values.
    """
    mask = pictures.pixels("--mask", path)
    wanted = (*model.shape[:-1], 1)
    if mask.shape not in (wanted, model.shape):
        raise ValueError(
            f"--mask {path}: {pictures.form(mask.shape, mask.dtype)}; expected the images' size with one channel, "
            f"{'x'.join(map(str, wanted))}, or all of theirs"
        )
    values = np.unique(mask)
    if np.count_nonzero(values) > 1:
        raise ValueError(
            f"--mask {path}: {len(values)} different values; expected 0 where a pixel is to be made and one other "
            "value where it is known (there are no soft masks)"
        )
    return mask != 0


def _inpaint(model: Model, asked: flags.Edits) -> Edit:
    if asked.mask is None:
        raise ValueError("--inpaint needs a --mask: an image that is 0 where pixels are to be made")
    image, mask = pictures.read(model, "--inpaint", str(asked.inpaint)), read_mask(model, asked.mask)
    resample = 1 if asked.resample is None else asked.resample
    jump, correct = 10 if asked.jump is None else asked.jump, asked.correct or 0
    times = edits.repaint_times(model.times, jump=jump, repeats=resample)

    def chain(both, tile):
        inputs, (known, where) = both

        def given(denoise):
            return edits.given_pixels(model.schedule, denoise, known, where, iterations=correct, clip=False)

        sampler = model.sampler_told(inputs, tile.said, given if correct else None)
        return edits.inpainting(model.schedule, sampler, known, where), inputs.times

    inputs = np.asarray(data.to_unit(image[None], model.levels)), np.broadcast_to(mask, model.shape)[None]
    settings = dataclasses.replace(asked, resample=resample, jump=jump, correct=correct)
    record = _record(settings, {asked.inpaint: image, asked.mask: mask})
    return Edit(model, chain, times, inputs, (image, mask), record)


def _init(model: Model, asked: flags.Edits) -> Edit:
    image = pictures.read(model, "--init", str(asked.init))
    strength = 0.6 if asked.strength is None else asked.strength
    times = edits.part_of(model.times, strength)

    def chain(both, tile):
        inputs, picture = both
        return edits.from_image(model.schedule, model.sampler_told(inputs, tile.said), picture), inputs.times

    inputs, record = np.asarray(data.to_unit(image[None], model.levels)), {asked.init: image}
    record = _record(dataclasses.replace(asked, strength=strength), record)
    return Edit(model, chain, times, inputs, None, record)


def _between(model: Model, asked: flags.Edits, start: int, num: int) -> Edit:
    """Images i = 0 ... num - 1 decode the point i / (num - 1) of the arc between the two inverted images."""
    c = model.config.sampling
    if c.sampler != "ddim" or c.eta != 0:
        raise ValueError("--between takes images to noise and back, which ddim without noise does: add --sampler ddim "
                         "--eta 0")  # fmt: skip
    if start != 0 or num < 2:
        raise ValueError(f"--between makes a series from the first image to the second: --start must be 0 and --num at "
                         f"least 2, got {start} and {num}")  # fmt: skip
    first, second = asked.between or ("", "")
    pair = [pictures.read(model, "--between", path) for path in (first, second)]
    invert = jax.jit(
        lambda params, x: edits.invert(model.schedule, model.denoiser(params), x, model.times, iterations=INVERSION)
    )
    latents = np.asarray(invert(model.params, data.to_unit(np.stack(pair), model.levels)))

    def chain(both, tile):
        inputs, (ends, last) = both
        weight = jnp.clip(tile.indices.astype(jnp.float32) / last, 0, 1)
        a, b = (jnp.broadcast_to(end, (len(tile.indices), *model.shape)) for end in ends)
        sampler = model.sampler_told(inputs, tile.said)
        return sampler._replace(init=lambda _, t: sampler.init(edits.slerp(a, b, weight), t)), inputs.times

    record = _record(asked, {first: pair[0], second: pair[1]})
    return Edit(model, chain, model.times, (latents, np.float32(num - 1)), None, record)


def _record(asked: flags.Edits, files: dict[Any, np.ndarray]) -> dict[str, Any]:
    given = {name: value for name, value in dataclasses.asdict(asked).items() if value is not None}
    return {"flags": given, "sha256": {name: image_hash(pixels) for name, pixels in files.items()}}
