"""What to try when something does not fit into a device's memory."""

import contextlib
from collections.abc import Callable, Iterator

from ddpm_jax.process.output import first_line


@contextlib.contextmanager
def explain_oom(what: str, hints: Callable[[], list[str]]) -> Iterator[None]:
    """Around what may need more memory than a device has, when it is compiled or when it runs.

    Args:
        what: it is.
        hints: flags to try, the mildest first.

    Raises:
        MemoryError: if it does, with what to try.
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
    """Flags for sampling that needs less memory than tiles of so many images; `flag` is what sets them."""
    return [f"{flag} {tile // 2}: images of a device at a time; to the last bit, it makes them others"] * (tile > 1)
