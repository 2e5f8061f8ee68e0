"""Batches of images that do not fit into memory: read ahead by threads, and put on the devices ahead of their step.

The batch of step n is that of `Order.indices(n, batch)`, so it is the same images, in the same places, as when all of
them are in memory, and a resumed run needs nothing but its step.

Threads are enough: Pillow decodes without holding Python's lock.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.data.batches import Order
from ddpm_jax.data.reader import Reader


class Stream:
    """The batches of a reader, or the share of them that one of several processes feeds to its devices.

        with contextlib.closing(Stream(reader, order, 128).batches(start)) as batches:
            for step, images in enumerate(batches, start): ...

    Args:
        reader: the images.
        order: which of them are in which batch, of as many examples as the reader has.
        batch: images of a step, over all processes.
        process_index, process_count: this process gets the images process_index * b ... (process_index + 1) * b - 1 of
            each batch, where b = batch / process_count.
        threads: how many images are read at once.
        prefetch: how many batches are read ahead; so many and one more are in memory.

    Raises:
        ValueError: if batch is not divisible by process_count, or an option is out of range.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        batch: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 8,
        prefetch: int = 2,
    ) -> None:
        if process_count < 1 or not 0 <= process_index < process_count:
            raise ValueError(
                f"Stream: expected 0 <= process_index < process_count, got {process_index} and {process_count}"
            )
        if batch < 1 or batch % process_count:
            raise ValueError(f"Stream: expected a batch divisible by process_count={process_count}, got {batch}")
        if threads < 1 or prefetch < 1:
            raise ValueError(f"Stream: expected threads and prefetch of at least 1, got {threads} and {prefetch}")
        self._reader, self._order, self._batch = reader, order, batch
        self._share = slice(process_index * batch // process_count, (process_index + 1) * batch // process_count)
        self._threads, self._prefetch = threads, prefetch

    def batches(self, start: int) -> Generator[np.ndarray, None, None]:
        """The batches of the steps start, start + 1, ..., without end: each [batch / process_count, H, W, C].

        No thread is left when it is closed or deleted.  It may be begun again at any step.

        Raises:
            ValueError: at the step that needs an image that cannot be read, with its name.
        """
        pool, waiting = ThreadPoolExecutor(self._threads, thread_name_prefix="stream"), deque()
        try:
            for ahead in itertools.count(start):
                waiting.append(self._begin(pool, ahead))
                if len(waiting) > self._prefetch:
                    yield waiting.popleft().images(ahead - self._prefetch)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> "_Pending":
        indices = self._order.indices(step, self._batch)[self._share]
        # always a fresh array: on a CPU, JAX may take it as it is
        images = np.empty((len(indices), *self._reader.shape), self._reader.dtype)
        together = -(-len(indices) // (2 * self._threads))  # a task for each image would cost more than small images
        places = range(0, len(indices), together)
        return _Pending(images, [pool.submit(self._fill, images, indices, k, k + together) for k in places])

    def _fill(self, images: np.ndarray, indices: np.ndarray, start: int, stop: int) -> None:
        for place in range(start, min(stop, len(indices))):
            image = self._reader[int(indices[place])]
            if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
                raise ValueError(
                    f"{self._reader.name}: image {indices[place]} is {image.dtype} {image.shape}, expected "
                    f"{images.dtype} {images.shape[1:]}"
                )
            images[place] = image


class _Pending(NamedTuple):
    """A batch that is being read."""

    array: np.ndarray
    parts: list[Future[None]]

    def images(self, step: int) -> np.ndarray:
        wait(self.parts)
        for part in self.parts:
            error = part.exception()
            if error is not None:
                error.add_note(f"in the batch of step {step}")
                raise error
        return self.array


def on_devices(
    batches: Iterator[np.ndarray], sharding: jax.sharding.Sharding, *, ahead: int = 1
) -> Generator[jax.Array, None, None]:
    """The batches on devices, each put there while the step before it is still at work.

    Args:
        batches: each the share of this process, as `Stream.batches` gives it, [b, ...].
        sharding: of the whole batch of all processes, [batch, ...].
        ahead: how many batches are on the devices beside the one that is in use.

    Raises:
        ValueError: if ahead < 0; and what `batches` raises, at the step that it belongs to.
    """
    if ahead < 0:
        raise ValueError(f"on_devices: expected ahead >= 0, got {ahead}")
    return _on_devices(batches, sharding, ahead)


def _on_devices(
    batches: Iterator[np.ndarray], sharding: jax.sharding.Sharding, ahead: int
) -> Generator[jax.Array, None, None]:
    waiting, error = deque(), None
    with contextlib.ExitStack() as stack:
        if isinstance(batches, Generator):
            stack.enter_context(contextlib.closing(batches))
        while True:
            try:
                while error is None and len(waiting) <= ahead:
                    waiting.append(jax.make_array_from_process_local_data(sharding, next(batches)))
            except Exception as raised:  # not yet its turn
                error = raised
            if waiting:
                yield waiting.popleft()
            elif isinstance(error, StopIteration):
                return
            else:
                assert error is not None
                raise error
