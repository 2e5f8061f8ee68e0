"""Explanations of a device's out-of-memory errors."""

import contextlib
from collections.abc import Callable, Iterator

from ddpm_jax.process.output import first_line


@contextlib.contextmanager
def explain_oom(what: str, hints: Callable[[], list[str]]) -> Iterator[None]:
    """Context manager around code that may exceed a device's memory when compiled or run.

    Raises:
        MemoryError: in place of JAX's error, that `what` does not fit, with the hints: flags to try, the mildest first.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        if "RESOURCE_EXHAUSTED" not in reason and "Out of memory" not in reason:
            raise
        tries = "".join(f"\n  {one}" for one in hints() or ["a device with more memory"])
        raise MemoryError(f"{what} does not fit into a device's memory: {reason}\nTry one of:{tries}") from error


def sampling_oom_hints(tile: int, flag: str = "--tile") -> list[str]:
    """Flags for sampling with less memory than tiles of `tile` images; `flag` sets the tile."""
    return [f"{flag} {tile // 2}: images of a device at a time; it changes the images' last bits"] * (tile > 1)
