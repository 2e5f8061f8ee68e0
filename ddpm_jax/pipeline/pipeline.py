"""A trained network, as a run's checkpoint holds it."""

import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import ddpm_jax
from ddpm_jax import checkpoint, data, keys
from ddpm_jax import config as configs
from ddpm_jax.config import ranges
from ddpm_jax.model import Model, build, conditioning_image_shape, is_conditional, sampler_options
from ddpm_jax.pipeline import averages, tiles, x0_mse
from ddpm_jax.pipeline.requests import UNCONDITIONAL, ConditionRequest


class Pipeline:
    """A trained network, as one checkpoint of a run holds it, ready to draw images.

    Args:
        workdir: the run's folder; it is only read.
        step: which checkpoint; None is the newest that can be read.
        weights: "ema", the moving average of the parameters, "raw", or "ema:LENGTH", a post-hoc EMA.
        sampling: fields of `config.Sampling` in place of the config's own.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint, or the analytic sampler misses the network's errors.
        ValueError: if a field of `sampling` is unknown or has a value that the config refuses, the errors are not
            those of this network, or the run has no such weights.

    Attributes:
        shape: of an image, (H, W, C) or (D, H, W, C).
        levels: of the data, or their `data.Range`.
        dtype: of the data.
        format: what the data came as, see `data.Images`; "" also if the checkpoint does not say.
        tile: images per device and network call: the config's, or where that leaves it open, what suits the device.
        label_names: of the labels that the network takes; () if there are none.
        untrained_labels: labels that it takes and that no training image had.
        origin: the record of where the weights came from, if they were converted; else None.
        request: which images are drawn; those of nothing in particular, unless it was made by `with_request`.
        x0_mse: of the network at each t, float32 [T+1], if its sampler is the analytic one; else None.
    """

    def __init__(self, workdir: str | pathlib.Path, *, step: int | None, weights: str, sampling: dict[str, Any]):
        self.workdir = pathlib.Path(workdir)
        if not (self.workdir / "checkpoints").is_dir():
            raise FileNotFoundError(f"{workdir} holds no checkpoints: it is not the folder of a run")
        with checkpoint.Checkpoints(self.workdir / "checkpoints", read_only=True) as saved:
            meta = saved.meta(step)
            config = configs.from_dict(meta["config"])
            image = meta["image"]
            self.shape, levels = tuple(image["shape"]), image["levels"]
            self.levels: int | data.ValueRange = data.ValueRange(*levels) if isinstance(levels, list) else int(levels)
            usual = np.uint8 if isinstance(levels, int) and levels <= 256 else np.uint16
            self.dtype = np.dtype(image.get("dtype", usual))
            self.format = image.get("format", "")
            self.label_names = tuple(unicodedata.normalize("NFC", name) for name in image.get("label_names", ()))
            self.untrained_labels = tuple(image.get("untrained", ()))
            built = build(config, self.shape, self.levels)
            self._load_weights(saved, built, weights, step)
        self.schedule, self.origin = built.schedule, meta.get("origin")
        self._programs: dict[Any, Any] = {}
        self._configure(config, sampling, UNCONDITIONAL)

    def _load_weights(self, saved: checkpoint.Checkpoints, model: Model, weights: str, step: int | None) -> None:
        length = ranges.ema_length(weights)
        if length is not None:
            available = averages.KeptAverages(self.workdir, saved, model, step)
            self.weights, self.step, self.params = f"ema:{length:g}", available.step, available.reconstruct(length)
            self.fingerprint = checkpoint.fingerprint(self.params)
            return
        part, target = {"ema": "ema", "raw": "params"}[weights], jax.eval_shape(model.init, keys.from_seed(0))
        self.step, self.params, meta = saved.restore_part(part, target, step=step)
        self.weights, self.fingerprint = weights, meta["fingerprint"][part]

    def _configure(self, config: configs.Config, sampling: dict[str, Any], request: ConditionRequest) -> None:
        resolved = dataclasses.asdict(config.sampling) | configs.current_names(sampling, configs.Sampling)
        self.config = dataclasses.replace(config, sampling=configs.from_dict(resolved, configs.Sampling))
        self.model = build(self.config, self.shape, self.levels)
        self.tile = self.model.tile_size(jax.local_devices()[0].platform)
        self.times, self.request = self.model.times, request
        analytic = self.config.sampling.sampler == "analytic"
        self.x0_mse = x0_mse.load(self.workdir, self.fingerprint, self.config) if analytic else None

    def with_request(self, request: ConditionRequest, **sampling: Any) -> "Pipeline":
        """The same network, asked for these images, with some fields of `config.Sampling` in place of its own.

        What was compiled stays: another sampler, number of steps, or kind of clipping is another program, but not
        another label, text, guidance, eta, mix or spacing.

        Raises:
            ValueError: as the class.
        """
        other = copy.copy(self)
        other._configure(self.config, sampling, request)
        return other

    def with_weights(self, weights: str) -> "Pipeline":
        """The same network with other weights of its checkpoint; what was compiled stays.

        Raises:
            FileNotFoundError, ValueError: as the class.
        """
        other = copy.copy(self)
        with checkpoint.Checkpoints(self.workdir / "checkpoints", read_only=True) as saved:
            other._load_weights(saved, self.model, weights, self.step)
        other._configure(self.config, {}, self.request)
        return other

    def describe(self) -> str:
        """One line: which weights, which sampler."""
        c = self.config.sampling
        how = "".join(f", {name} {value}" for name, value in sampler_options(self.config).items())
        line = f"{self.workdir}, step {self.step}, {self.weights} weights; {c.sampler}, {c.steps} steps{how}"
        if not is_conditional(self.config):
            return line
        return f"{line}, guidance {c.guidance:g}; {self.request.describe(self.label_names)}"

    def draw(
        self,
        *,
        seed: int,
        start: int,
        num: int,
        batch: int | None = None,
        save_at: Sequence[int] = (),
    ) -> Iterator[tiles.Drawn]:
        """The images start ... start + num - 1 of a seed, by tiles; see `tiles.draw`.

        Args:
            save_at: times whose states are drawn instead, see `tiles.trajectory_program`.

        Raises:
            ValueError: if the network does not take the requested condition.
        """
        return self.draw_with(
            lambda inputs, tile: self.conditioned_sampler(inputs, tile.condition), ("noise",), self.inputs, self.times,
            seed=seed, start=start, num=num, batch=batch, save_at=save_at,
        )  # fmt: skip

    def draw_with(
        self,
        sampler_factory: tiles.SamplerFactory,
        program_key: tuple,
        inputs: Any,
        times: np.ndarray,
        *,
        seed: int,
        start: int,
        num: int,
        batch: int | None = None,
        save_at: Sequence[int] = (),
    ) -> Iterator[tiles.Drawn]:
        """Images by another sampler of this network's.

        Args:
            program_key: of the sampler: a second one of the same name, and the same kind of sampling, is not compiled.

        Raises:
            ValueError: as `draw`.
        """
        self.request.check(self.config)
        kind = *program_key, self.model.sampler_spec
        if save_at:
            kind += tuple(times.tolist()), tuple(save_at)
        if kind not in self._programs:
            if save_at:
                trajectory = tiles.trajectory_function(sampler_factory, self.shape, times, save_at)
                self._programs[kind] = tiles.trajectory_program(trajectory, self.config.parallel)
            else:
                self._programs[kind] = tiles.sampling_program(sampler_factory, self.shape, self.config.parallel)
        program = self._programs[kind] if save_at else functools.partial(self._programs[kind], times=times)
        return tiles.draw(
            program, inputs, seed=seed, start=start, num=num, tile=self.tile, batch=batch,
            conditions=functools.partial(self.request.gather, self.config, self.shape),
        )  # fmt: skip

    @property
    def inputs(self) -> tiles.SamplerInputs:
        """The arguments of a program that draws."""
        scalars = self.model.scalars(self.x0_mse)
        if self.request == UNCONDITIONAL:  # without guidance: one call of the network does what two would
            scalars = scalars._replace(guidance=np.float32(1))
        return tiles.SamplerInputs(self.params, scalars)

    @property
    def x0_mse_digest(self) -> str | None:
        """The digest of the errors that the analytic sampler uses; None for the others."""
        return None if self.x0_mse is None else f"sha256:{hashlib.sha256(self.x0_mse.tobytes()).hexdigest()}"

    @property
    def integer_levels(self) -> int:
        """The levels of the data, for what is done with integers alone.

        Raises:
            ValueError: if the data are floating-point.
        """
        if isinstance(self.levels, data.ValueRange):
            raise ValueError(
                f"{self.workdir} has floating-point images, and this command needs integers: training reports the "
                "held-out bound of such a run, and `sample` draws its images"
            )
        return self.levels

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        """Images in [-1, 1], as `draw` gives them, as the data have them: of their levels or range, and their type."""
        return data.denormalize(x, self.levels).astype(self.dtype, copy=False)

    def manifest(self) -> dict[str, Any]:
        """The record of how images are drawn, without seed and indices."""
        device = jax.devices()[0]
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "weights": self.weights,
            "sampling": dataclasses.asdict(self.config.sampling) | {"tile": self.tile},
            "asked": self.request.to_record(),
            **({"x0_errors": self.x0_mse_digest} if self.x0_mse_digest else {}),
            "times": self.times.tolist(),
            "image": {"shape": list(self.shape), "levels": self.levels, "dtype": str(self.dtype)},
            "machine": {"platform": device.platform, "kind": device.device_kind, "devices": jax.device_count()},
            "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
        }

    def png_text(self) -> dict[str, str]:
        """The texts of a picture's file that name the weights and the sampling, as pictures have always had them."""
        sampling = configs.former_names(self.manifest()["sampling"], configs.Sampling)
        return {"run": f"{self.fingerprint} step {self.step}", "sampling": json.dumps(sampling)}

    def denoiser(self, params):
        """The `gaussian.Denoiser` of the unconditional network with these parameters.

        Raises:
            ValueError: if it was never unconditional in training, or a condition is requested.
        """
        condition = self.config.condition
        if conditioning_image_shape(self.config, self.shape):
            raise ValueError("this is for an unconditional network, and this run's takes a conditioning image")
        if is_conditional(self.config) and not condition.dropout:
            raise ValueError("this is for an unconditional network, and this run's never is: condition.dropout is 0")
        if self.request != UNCONDITIONAL:
            asked = self.request.describe(self.label_names)
            raise ValueError(f"this is for the unconditional network: leave out the {asked}")
        model = self.model
        return model.denoiser_of(lambda x_t, t: model.net(params, model.empty_condition(len(x_t)))(x_t, t))

    def sampler(self, params):
        """The `samplers.Sampler` of the unconditional network with these parameters."""
        return self.model.sampler_of(self.denoiser(params), self.inputs.scalars)

    def conditioned_sampler(self, inputs: tiles.SamplerInputs, condition, transform=None):
        """The `samplers.Sampler` of the network with a condition, see `ConditionRequest.gather`, and its guidance.

        `transform` is as in `Model.denoiser_of`.
        """
        return self.model.sampler(inputs.params, condition, inputs.scalars, transform)
