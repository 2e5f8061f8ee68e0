"""Streamed batches: the images that are seen when all are in memory, and nothing left behind."""

import contextlib
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax import data
from ddpm_jax.data import catalogue
from ddpm_jax.data.__main__ import main
from ddpm_jax.data.prepare import Resident
from ddpm_jax.data.stream import Stream, on_devices

BATCH = 24


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The digits as a prepared data set."""
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["prepare", "digits", "--name", "figures", "--out", str(folder), "--shards", "3"]) == 0
    return folder


@pytest.fixture
def reader(home):
    return catalogue.parts(f"tfds:figures@{home}")[0]


class Slow:
    """Images that take a while, and are counted."""

    name, shape, dtype, levels, labels, label_names, captions, format = (
        "slow",
        (1, 1, 1),
        np.dtype(np.uint8),
        256,
        None,
        (),
        None,
        "",
    )

    def __init__(self, seconds=0.0):
        self.seconds, self.read = seconds, []

    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        time.sleep(self.seconds)
        self.read.append(i)
        return np.zeros((1, 1, 1), np.uint8)


def order(size=1500, seed=0):
    return data.Order(jax.random.key(seed), size)


def take(count, generator):
    with contextlib.closing(generator):
        return list(itertools.islice(generator, count))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def gone(seconds=5.0):
    """Whether no thread is left, at the latest after some seconds."""
    end = time.monotonic() + seconds
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not threads()


# Which images


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_training_sees_the_images_that_it_sees_when_all_are_in_memory(reader, processes):
    pixels, steps = jnp.asarray(data.load("digits").train), range(60, 66)  # the first epoch ends in step 62
    streams = [
        Stream(reader, order(), BATCH, process_index=i, process_count=processes).batches(steps.start)
        for i in range(processes)
    ]
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stack.enter_context(contextlib.closing(stream))
        for step in steps:
            together = np.concatenate([next(stream) for stream in streams])
            keys = jax.random.split(jax.random.key(step), BATCH)
            seen = data.examples(keys, together, jnp.arange(BATCH), levels=17, flip=True)
            expected = data.examples(keys, pixels, order().indices(step, BATCH), levels=17, flip=True)
            np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(("threads", "prefetch", "batch"), [(1, 1, 1), (3, 1, 7), (16, 4, 64)])
def test_threads_and_prefetch_change_nothing(reader, threads, prefetch, batch):
    images = data.load("digits").train
    for step, found in enumerate(
        take(5, Stream(reader, order(), batch, threads=threads, prefetch=prefetch).batches(0))
    ):
        np.testing.assert_array_equal(found, images[order().indices(step, batch)])


def test_it_goes_on_at_any_step(reader):
    stream = Stream(reader, order(), BATCH)
    straight = take(8, stream.batches(0))
    for step in (3, 7, 0):  # one stream, begun again
        np.testing.assert_array_equal(take(1, stream.batches(step))[0], straight[step])


def test_a_batch_may_hold_several_epochs():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    (found,) = take(1, Stream(Resident("five", images, None, (), None, 256), order(5), 20).batches(0))
    assert np.bincount(found.ravel()).tolist() == [4] * 5


# Reading ahead


def test_only_so_much_is_read_ahead():
    slow = Slow()
    batches = Stream(slow, order(10_000), 8, prefetch=3).batches(0)
    with contextlib.closing(batches):
        for taken in (1, 2):
            next(batches)
            end = time.monotonic() + 5
            while len(slow.read) < 8 * (3 + taken) and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(0.05)
            # the batch that was taken, and three that wait
            assert len(slow.read) == 8 * (3 + taken)


def test_images_are_read_while_the_step_is_at_work():
    # 32 images of 20 ms, and steps of 100 ms: one after the other, a step takes 740 ms; at the same time, about 100.
    batches = Stream(Slow(0.02), order(10_000), 32, threads=8).batches(0)
    with contextlib.closing(batches):
        next(batches)
        begun = time.monotonic()
        for _ in range(5):
            time.sleep(0.1)
            next(batches)
        assert time.monotonic() - begun < 5 * 0.4


# The end


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_no_thread_is_left_after_closing(taken):
    batches = Stream(Slow(0.001), order(10_000), 16).batches(0)
    for _ in range(taken):
        next(batches)
    assert bool(threads()) == bool(taken)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 1
    assert not threads()
    with pytest.raises(StopIteration):
        next(batches)


def test_no_thread_is_left_when_it_is_forgotten():
    batches = Stream(Slow(), order(10_000), 16).batches(0)
    next(batches)
    del batches
    assert gone()


def damaged(home, tmp_path, image):
    """The prepared digits with one image that cannot be read."""
    source = home / "figures" / "1.0.0"
    target = tmp_path / "figures" / "1.0.0"
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    file = target / "figures-train.array_record-00000-of-00003"
    content, at = bytearray(file.read_bytes()), -1
    for _ in range(image + 1):
        at = bytes(content).index(b"IHDR", at + 1)
    content[at] ^= 255
    file.write_bytes(content)
    return catalogue.parts(f"tfds:figures@{tmp_path}")[0]


@pytest.mark.parametrize("device", [False, True])
def test_a_bad_image_ends_the_step_that_needs_it_and_no_other(home, tmp_path, device):
    reader, image = damaged(home, tmp_path, 7), 7
    bad = next(step for step in itertools.count() if image in order().indices(step, BATCH))
    start = max(bad - 4, 0)
    assert bad > start
    batches = Stream(reader, order(), BATCH, prefetch=3).batches(start)
    if device:
        batches = on_devices(batches, jax.sharding.SingleDeviceSharding(jax.devices()[0]), ahead=2)
    for step in range(start, bad):
        np.testing.assert_array_equal(next(batches), data.load("digits").train[order().indices(step, BATCH)])
    with pytest.raises(ValueError, match=r"tfds:figures@.*: image 7 of the split 'train' cannot be read") as error:
        next(batches)
    assert error.value.__notes__ == [f"in the batch of step {bad}"]
    assert not threads()
    # from the next step on all is well
    np.testing.assert_array_equal(
        take(1, Stream(reader, order(), BATCH).batches(bad + 1))[0],
        data.load("digits").train[order().indices(bad + 1, BATCH)],
    )


# Devices


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_are_spread_over_devices(reader, ahead):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    images = data.load("digits").train
    for step, found in enumerate(take(4, on_devices(Stream(reader, order(), BATCH).batches(0), sharding, ahead=ahead))):
        assert found.sharding == sharding
        expected = images[order().indices(step, BATCH)]
        for shard in found.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
    assert not threads()


def test_batches_that_end_end_on_devices_too():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for count in (0, 1, 5):
        arrays = [np.full(2, i) for i in range(count)]
        assert [int(batch[0]) for batch in on_devices(iter(arrays), sharding, ahead=2)] == list(range(count))


# What is refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"process_index": 2, "process_count": 2}, "0 <= process_index < process_count, got 2 and 2"),
        ({"process_count": 0}, "0 <= process_index < process_count, got 0 and 0"),
        ({"process_count": 5}, "a batch divisible by process_count=5, got 24"),
        ({"threads": 0}, "threads and prefetch of at least 1, got 0 and 2"),
        ({"prefetch": 0}, "threads and prefetch of at least 1, got 8 and 0"),
    ],
)
def test_options_are_refused(options, text):
    with pytest.raises(ValueError, match=f"Stream: expected {text}"):
        Stream(Slow(), order(10), BATCH, **options)


def test_a_negative_number_of_batches_on_devices_is_refused():
    with pytest.raises(ValueError, match="on_devices: expected ahead >= 0, got -1"):
        on_devices(iter([]), jax.sharding.SingleDeviceSharding(jax.devices()[0]), ahead=-1)


@pytest.mark.parametrize("image", [np.zeros((1, 1, 1), np.uint16), np.zeros((2, 1, 1), np.uint8)])
def test_an_image_of_another_kind_is_refused(image):
    class Odd(Slow):
        def __getitem__(self, i):
            return image

    with pytest.raises(ValueError, match=r"slow: image \d+ is uint(8|16) \([12], 1, 1\), expected uint8 \(1, 1, 1\)"):
        take(1, Stream(Odd(), order(10_000), 4).batches(0))
