"""Flags that several programs share: which weights of a run, and what replaces its sampling."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Weights:
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the parameters, or the parameters as training has them."""
    checkpoint: int | None = None
    """The checkpoint's step (default: the newest)."""


@dataclasses.dataclass(frozen=True)
class Asked:
    label: str | None = None
    """Images of this label, a name or a number."""
    labels: str | None = None
    """Images of these labels in turn, names or numbers with commas between, or "all"."""
    text: tuple[str, ...] = ()
    """Images of this text, or of these in turn; "" is told nothing."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    sampler: Literal["ancestral", "ddim", "dpm_solver_pp"] | None = None
    """The reverse process (default for this and the following: what the config says)."""
    steps: int | None = None
    """Network calls per image."""
    spacing: Literal["uniform", "leading", "trailing", "linspace", "ddim", "quadratic"] | None = None
    """How the visited times are spread over 1..T."""
    mix: float | None = None
    """Reverse variance of ancestral sampling: 1 is beta, 0 is beta-tilde."""
    eta: float | None = None
    """Noise of DDIM: 0 is deterministic, 1 ancestral."""
    order: int | None = None
    """Order of DPM-Solver++, 1 to 3."""
    clip: bool | None = None
    """Bring each predicted x_0 into [-1, 1]."""
    threshold: float | None = None
    """Instead of clipping, divide x_0 by this percentile of its absolute value, if that exceeds 1; 0 is off."""
    eps_scale: float | None = None
    """Divide the predicted noise by this, before x_0 is clipped."""
    guidance: float | None = None
    """How far to go from what nothing says to what the condition says: 1 is there, more is beyond."""
    guidance_interval: tuple[int, int] | None = None
    """First and last time t to guide at."""
    tile: int | None = None
    """Images per device and network call: part of what an image is, to the bit."""

    def chosen(self) -> dict[str, Any]:
        """The fields of `config.Sampling` that were given, with their values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
