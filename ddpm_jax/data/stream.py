"""The images of each step, or of some steps together, on the devices before they are needed.

Two ways, one contract: the images of step n are those of `Order.indices(n, batch)`, in that order over all devices, so
a run that resumes needs nothing but its step, and neither the way nor the number of processes changes what is seen.

Images that fit lie on every device as the integers they are, a row each, and a step is given indices alone.  Others are
read ahead by grain's threads (Pillow decodes without holding Python's lock), and a step is given the images themselves.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import process
from ddpm_jax.data.batches import Order, Rows
from ddpm_jax.data.reader import IN_MEMORY, Pixels, Reader, Unread

AHEAD = 1 << 30
"""Bytes of batches that are read ahead, where that is between 2 and 16 of them."""


class Batch(NamedTuple):
    """What k steps are given.

    indices: int32 [k, batch], the examples, over all processes: for the record.
    pixels: images on this process's devices, N of them as `Rows` on each, or [devices, k, b, H, W, C].
    places: int32 [devices, k, b]: which of a device's pixels are its examples.
    """

    indices: np.ndarray
    pixels: jax.Array | Rows
    places: np.ndarray


class Feed(NamedTuple):
    """The images of all steps.

    axis: that of `Batch.pixels` over which they are spread: `pmap`'s in_axes for them.  None is the same for all.
    batches: the batches of the steps start + 1, start + 2, ..., without end, as many together as lead to the next
        multiple of `together`.  Close it: threads may be at work.
    """

    axis: int | None
    batches: Callable[[int], Generator[Batch, None, None]]


def streams(pixels: Pixels, stream: bool | None) -> bool:
    """Whether images are read ahead of each step; None is where they would take more than 2 GiB on every device."""
    return pixels.nbytes > IN_MEMORY if stream is None else stream


def by_device(indices: np.ndarray, devices: int) -> np.ndarray:
    """[k, batch] -> [devices, k, b]: of each step the same share to each device, one after the other."""
    return indices.reshape(len(indices), devices, -1).swapaxes(0, 1)


def feed(
    pixels: Pixels,
    order: Order,
    batch: int,
    devices: Sequence[Any],
    *,
    stream: bool | None = None,
    together: int = 1,
) -> Feed:
    """The images of each step on the devices of this process, as many on each.

    Args:
        pixels: [N, H, W, C], in host memory or unread.
        order: of N examples.
        batch: images of a step, over all devices of all processes.
        devices: those of this process.
        stream: see `streams`.
        together: of how many steps.

    Raises:
        ValueError: if the batch is not divisible by the number of devices; from `Feed.batches`, at the step that needs
            an image that cannot be read, with its name.
    """
    everywhere = len(devices) * jax.process_count()
    if batch < 1 or batch % everywhere:
        raise ValueError(f"batch must be divisible by the number of devices, got {batch} over {everywhere}")
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    if not streams(pixels, stream):
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        rows = jax.device_put(Rows.of(np.asarray(pixels)), whole)
        return Feed(None, _resident(rows, order, batch, everywhere, together))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    return Feed(0, _streamed(pixels, order, batch, everywhere, spread, together))


def read_ahead(
    pixels: Pixels, order: Order, batch: int, start: int, *, share: slice = slice(None)
) -> Generator[np.ndarray, None, None]:
    """The images of the steps start, start + 1, ..., without end, each step's in an array of its own.

    No thread is left when it is closed or deleted.

    Args:
        share: the part of each batch, such as that of one of several processes; all of it by default.
    """
    import grain  # which only this needs

    ahead = min(16, max(2, AHEAD // max(1, batch * pixels.nbytes // len(pixels))))
    reader = pixels.reader if isinstance(pixels, Unread) else None

    def read(step: int) -> np.ndarray:
        indices = order.indices(step, batch)[share]
        if reader is None:
            return pixels[indices]  # fancy indexing copies
        images = np.empty((len(indices), *reader.shape), reader.dtype)
        for place, i in enumerate(indices):
            images[place] = _checked(reader, int(i))
        return images

    steps = grain.MapDataset.range(start, 2**62).map(read)
    batches = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))
    try:
        for step in itertools.count(start):
            try:
                yield next(batches)
            except ValueError as error:
                error.add_note(f"in the batch of step {step}")
                raise
    finally:
        batches.close()


def _groups(start: int, together: int) -> Iterator[range]:
    """The steps from `start` on: those up to the next multiple of `together`, and then as many at a time."""
    while True:
        end = start + together - start % together
        yield range(start, end)
        start = end


def _resident(pixels: Rows, order: Order, batch: int, devices: int, together: int):
    def batches(start: int) -> Generator[Batch, None, None]:
        for steps in _groups(start, together):
            indices = np.stack([order.indices(step, batch) for step in steps])
            yield Batch(indices, pixels, process.share(by_device(indices, devices)))

    return batches


def _streamed(pixels: Pixels, order: Order, batch: int, devices: int, sharding: jax.sharding.Sharding, together: int):
    here, each = devices // jax.process_count(), batch // devices
    first = jax.process_index() * here * each
    share = slice(first, first + here * each)

    def sent(steps: range, images: Sequence[np.ndarray]) -> Batch:
        indices = np.stack([order.indices(step, batch) for step in steps])
        parts = np.stack([image.reshape(here, each, *image.shape[1:]) for image in images], axis=1)
        places = np.broadcast_to(np.arange(each, dtype=np.int32), (here, len(steps), each))
        return Batch(indices, jax.device_put(parts, sharding), places)

    def batches(start: int) -> Generator[Batch, None, None]:
        read = read_ahead(pixels, order, batch, start, share=share)
        try:
            coming = (sent(steps, [next(read) for _ in steps]) for steps in _groups(start, together))
            ready = next(coming)
            for later in coming:  # it travels while the steps before it are at work
                yield ready
                ready = later
        finally:
            read.close()

    return batches


def _checked(reader: Reader, i: int) -> np.ndarray:
    image = reader[i]
    if (image.shape, image.dtype) != (reader.shape, reader.dtype):
        raise ValueError(
            f"{reader.name}: image {i} is {image.dtype} {image.shape}, expected {reader.dtype} {reader.shape}"
        )
    return image
