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
from ddpm_jax.data.dataset import MAX_BYTES_IN_MEMORY, ImageReader, LazyImages, Pixels
from ddpm_jax.data.order import EpochShuffle, FlatImages

READ_AHEAD_BYTES = 1 << 30
"""Bytes of batches that are read ahead, where that is between 2 and 16 of them."""


class Batch(NamedTuple):
    """What k steps are given.

    indices: int32 [k, batch], the examples, over all processes: for the record.
    pixels: images on this process's devices, N of them as `Rows` on each, or [devices, k, b, H, W, C].
    pixel_indices: int32 [devices, k, b]: which of a device's pixels are its examples.
    """

    indices: np.ndarray
    pixels: jax.Array | FlatImages
    pixel_indices: np.ndarray


class DeviceLoader(NamedTuple):
    """The images of all steps.

    in_axis: that of `Batch.pixels` over which they are spread: `pmap`'s in_axes for them.  None is the same for all.
    batches: the batches of the steps start + 1, start + 2, ..., without end, as many together as lead to the next
        multiple of `steps_per_call`.  Close it: threads may be at work.
    """

    in_axis: int | None
    batches: Callable[[int], Generator[Batch, None, None]]


def is_streamed(pixels: Pixels, stream: bool | None) -> bool:
    """Whether images are read ahead of each step; None is where they would take more than 2 GiB on every device."""
    return pixels.nbytes > MAX_BYTES_IN_MEMORY if stream is None else stream


def split_by_device(indices: np.ndarray, devices: int) -> np.ndarray:
    """[k, batch] -> [devices, k, b]: of each step the same share to each device, one after the other."""
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
    """The images of each step on the devices of this process, as many on each.

    Args:
        pixels: [N, H, W, C], in host memory or unread.
        order: of N examples.
        batch: images of a step, over all devices of all processes.
        devices: those of this process.
        stream: see `streams`.
        steps_per_call: of how many steps.

    Raises:
        ValueError: if the batch is not divisible by the number of devices; from `Feed.batches`, at the step that needs
            an image that cannot be read, with its name.
    """
    device_count = len(devices) * jax.process_count()
    if batch < 1 or batch % device_count:
        raise ValueError(f"batch must be divisible by the number of devices, got {batch} over {device_count}")
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    if not is_streamed(pixels, stream):
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        rows = jax.device_put(FlatImages.from_images(np.asarray(pixels)), replicated)
        return DeviceLoader(None, _resident_batches(rows, order, batch, device_count, steps_per_call))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    return DeviceLoader(0, _streamed_batches(pixels, order, batch, device_count, sharded, steps_per_call))


def read_ahead(
    pixels: Pixels, order: EpochShuffle, batch: int, start: int, *, batch_slice: slice = slice(None)
) -> Generator[np.ndarray, None, None]:
    """The images of the steps start, start + 1, ..., without end, each step's in an array of its own.

    No thread is left when it is closed or deleted.

    Args:
        batch_slice: the part of each batch, such as that of one of several processes; all of it by default.
    """
    import grain  # which only this needs

    ahead = min(16, max(2, READ_AHEAD_BYTES // max(1, batch * pixels.nbytes // len(pixels))))
    reader = pixels.reader if isinstance(pixels, LazyImages) else None

    def read(step: int) -> np.ndarray:
        indices = order.indices(step, batch)[batch_slice]
        if reader is None:
            return pixels[indices]  # fancy indexing copies
        images = np.empty((len(indices), *reader.shape), reader.dtype)
        for place, i in enumerate(indices):
            images[place] = _read_checked(reader, int(i))
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


def _group_steps(start: int, steps_per_call: int) -> Iterator[range]:
    """The steps from `start` on: those up to the next multiple of `steps_per_call`, and then as many at a time."""
    while True:
        end = start + steps_per_call - start % steps_per_call
        yield range(start, end)
        start = end


def _resident_batches(pixels: FlatImages, order: EpochShuffle, batch: int, devices: int, steps_per_call: int):
    def batches(start: int) -> Generator[Batch, None, None]:
        for steps in _group_steps(start, steps_per_call):
            indices = np.stack([order.indices(step, batch) for step in steps])
            yield Batch(indices, pixels, process.local_shard(split_by_device(indices, devices)))

    return batches


def _streamed_batches(
    pixels: Pixels, order: EpochShuffle, batch: int, devices: int, sharding: jax.sharding.Sharding, steps_per_call: int
):
    local_devices, per_device = devices // jax.process_count(), batch // devices
    first = jax.process_index() * local_devices * per_device
    batch_slice = slice(first, first + local_devices * per_device)

    def put_on_devices(steps: range, images: Sequence[np.ndarray]) -> Batch:
        indices = np.stack([order.indices(step, batch) for step in steps])
        parts = np.stack([image.reshape(local_devices, per_device, *image.shape[1:]) for image in images], axis=1)
        pixel_indices = np.broadcast_to(np.arange(per_device, dtype=np.int32), (local_devices, len(steps), per_device))
        return Batch(indices, jax.device_put(parts, sharding), pixel_indices)

    def batches(start: int) -> Generator[Batch, None, None]:
        read = read_ahead(pixels, order, batch, start, batch_slice=batch_slice)
        try:
            coming = (
                put_on_devices(steps, [next(read) for _ in steps]) for steps in _group_steps(start, steps_per_call)
            )
            ready = next(coming)
            for later in coming:  # it travels while the steps before it are at work
                yield ready
                ready = later
        finally:
            read.close()

    return batches


def _read_checked(reader: ImageReader, i: int) -> np.ndarray:
    image = reader[i]
    if (image.shape, image.dtype) != (reader.shape, reader.dtype):
        raise ValueError(
            f"{reader.name}: image {i} is {image.dtype} {image.shape}, expected {reader.dtype} {reader.shape}"
        )
    return image
