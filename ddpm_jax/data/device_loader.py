"""Loader of the images of each step, or of several steps together, to the devices.

The images of step n are those of `EpochShuffle.indices(n, batch)`, in that order over all devices.  So a resumed run
needs only its step, and the batches do not depend on the loading method or the number of processes.

Images that fit into memory are put on every device once, as integers, and a step gets indices.  Others are read ahead
by grain's threads (Pillow decodes without holding Python's lock), and a step gets the images themselves.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import process
from ddpm_jax.data.dataset import MAX_BYTES_IN_MEMORY, LazyImages, Pixels
from ddpm_jax.data.order import EpochShuffle, FlatImages

READ_AHEAD_BYTES = 1 << 30
"""Bytes of batches to read ahead; at least 2 and at most 16 batches."""


class Batch(NamedTuple):
    """The images of k steps."""

    indices: np.ndarray  # int32 [k, batch], the examples over all processes, for the record
    pixels: jax.Array | FlatImages  # all N on each of this process's devices, or [devices, k, b, H, W, C]
    pixel_indices: np.ndarray  # int32 [devices, k, b]: which of a device's pixels are its examples


class DeviceLoader(NamedTuple):
    """Loader of the batches of all steps.

    batches: start -> the batches of the steps start + 1, start + 2, ..., without end, each up to the next multiple of
        `steps_per_call`.  Close the generator: it may have running threads.
    """

    in_axis: int | None  # `pmap`'s in_axes for `Batch.pixels`; None if every device has the same
    batches: Callable[[int], Generator[Batch, None, None]]


def is_streamed(pixels: Pixels, stream: bool | None) -> bool:
    """True if images are read ahead of each step: `stream`, or if it is None, if they take more than 2 GiB."""
    return pixels.nbytes > MAX_BYTES_IN_MEMORY if stream is None else stream


def split_by_device(indices: np.ndarray, devices: int) -> np.ndarray:
    """[k, batch] -> [devices, k, b]: consecutive equal parts of each step's batch."""
    return indices.reshape(len(indices), devices, -1).swapaxes(0, 1)


def make_device_loader(
    pixels: Pixels,
    order: EpochShuffle,
    batch: int,
    devices: Sequence[Any],
    *,
    stream: bool | None = None,
    steps_per_call: int = 1,
) -> DeviceLoader:
    """The loader of images [N, H, W, C] for this process's devices, with equal parts for each.

    Args:
        batch: images per step, over all devices of all processes.
        stream: see `is_streamed`.
        steps_per_call: number of steps per `Batch`.

    Raises:
        ValueError: if the batch is not divisible by the number of devices; from `DeviceLoader.batches`, at the step
            that needs an unreadable image, with the image's name.
    """
    device_count = len(devices) * jax.process_count()
    if batch < 1 or batch % device_count:
        raise ValueError(f"batch must be divisible by the number of devices, got {batch} over {device_count}")
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))

    def indices_of(steps: range) -> np.ndarray:
        return np.stack([order.indices(step, batch) for step in steps])

    if not is_streamed(pixels, stream):
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        images = np.asarray(pixels)
        rows = jax.device_put(FlatImages(images.reshape(len(images), -1), images.shape[1:]), replicated)

        def resident(start: int) -> Generator[Batch, None, None]:
            for indices in map(indices_of, _group_steps(start, steps_per_call)):
                yield Batch(indices, rows, process.local_shard(split_by_device(indices, device_count)))

        return DeviceLoader(None, resident)
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    b = batch // device_count
    process_offset = jax.process_index() * len(devices) * b
    batch_slice = slice(process_offset, process_offset + len(devices) * b)

    def put_on_devices(steps: range, images: Sequence[np.ndarray]) -> Batch:
        parts = np.stack([image.reshape(len(devices), b, *image.shape[1:]) for image in images], axis=1)
        pixel_indices = np.broadcast_to(np.arange(b, dtype=np.int32), (len(devices), len(steps), b))
        return Batch(indices_of(steps), jax.device_put(parts, sharded), pixel_indices)

    def streamed(start: int) -> Generator[Batch, None, None]:
        with contextlib.closing(read_ahead(pixels, order, batch, start, batch_slice=batch_slice)) as read:
            groups = _group_steps(start, steps_per_call)
            coming = (put_on_devices(steps, [next(read) for _ in steps]) for steps in groups)
            ready = next(coming)
            for later in coming:  # its transfer overlaps with the steps before
                yield ready
                ready = later

    return DeviceLoader(0, streamed)


def read_ahead(
    pixels: Pixels, order: EpochShuffle, batch: int, start: int, *, batch_slice: slice = slice(None)
) -> Generator[np.ndarray, None, None]:
    """Iterator over the images of the steps start, start + 1, ..., without end, a new array for each step.

    `batch_slice` is the part of each batch, such as that of one of several processes.  The iterator's threads end when
    it is closed or deleted.
    """
    import grain

    ahead = min(16, max(2, READ_AHEAD_BYTES // max(1, batch * pixels.nbytes // len(pixels))))
    reader = pixels.reader if isinstance(pixels, LazyImages) else None

    def read(step: int) -> np.ndarray:
        indices = order.indices(step, batch)[batch_slice]
        if reader is None:
            return pixels[indices]  # fancy indexing copies
        images = np.empty((len(indices), *reader.shape), reader.dtype)
        for row, i in enumerate(indices):
            image = reader[int(i)]
            if (image.shape, image.dtype) != (reader.shape, reader.dtype):
                expected = f"expected {reader.dtype} {reader.shape}"
                raise ValueError(f"{reader.name}: image {i} is {image.dtype} {image.shape}, {expected}")
            images[row] = image
        return images

    steps = grain.MapDataset.range(start, 2**62).map(read)
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    with contextlib.closing(iter(steps.to_iter_dataset(options))) as batches:
        for step in itertools.count(start):
            try:
                yield next(batches)
            except ValueError as error:
                error.add_note(f"in the batch of step {step}")
                raise


def _group_steps(start: int, steps_per_call: int) -> Iterator[range]:
    """The steps from `start` up to the next multiple of `steps_per_call`, and then `steps_per_call` at a time."""
    while True:
        end = start + steps_per_call - start % steps_per_call
        yield range(start, end)
        start = end
