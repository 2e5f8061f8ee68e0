"""The images of each step: the same whether they lie on the devices or are read ahead, and nothing left behind."""

import contextlib
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data.device_loader import READ_AHEAD_BYTES, is_streamed, make_device_loader, read_ahead
from ddpm_jax.data.tfds import reader
from ddpm_jax.keys import from_seed
from ddpm_jax.programs.cli import call as main

BATCH = 24


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The digits as a prepared data set."""
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["prepare", "digits", "--name", "figures", "--out", str(folder), "--shards", "3"]) == 0
    return folder


@pytest.fixture
def unread(home):
    return data.load(f"tfds:figures@{home}", stream=True).train


class Slow:
    """Images that take a while, and are counted."""

    name, shape, dtype, levels = "slow", (1, 1, 1), np.dtype(np.uint8), 256
    labels, label_names, captions, format = None, (), None, ""

    def __init__(self, seconds=0.0):
        self.seconds, self.read = seconds, []

    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        time.sleep(self.seconds)
        self.read.append(i)
        return np.zeros((1, 1, 1), np.uint8)


def order(size=1500, seed=0):
    return data.EpochShuffle(from_seed(seed), size)


def first_items(count, generator):
    with contextlib.closing(generator):
        return list(itertools.islice(generator, count))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain")]


def gone(seconds=5.0):
    """Whether no thread is left, at the latest after some seconds."""
    end = time.monotonic() + seconds
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not threads()


# Which images


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_training_sees_the_images_that_it_sees_when_all_are_in_memory(unread, processes):
    pixels, steps, each = data.load("digits").train, range(60, 66), BATCH // processes  # an epoch ends in step 62
    slices = [slice(i * each, (i + 1) * each) for i in range(processes)]
    with contextlib.ExitStack() as stack:
        read = [read_ahead(unread, order(), BATCH, steps.start, batch_slice=part) for part in slices]
        for one in read:
            stack.enter_context(contextlib.closing(one))
        for step in steps:
            together = np.concatenate([next(one) for one in read])
            np.testing.assert_array_equal(together, pixels[order().indices(step, BATCH)])


@pytest.mark.parametrize(("devices", "together"), [(1, 1), (2, 1), (8, 1), (1, 4), (8, 3)])
def test_both_ways_give_each_device_the_same_examples(unread, devices, together):
    """As the compiled step takes them: by `places` out of the device's `pixels`."""
    found = {}
    for streamed in (False, True):
        fed = make_device_loader(
            unread, order(), BATCH, jax.devices()[:devices], stream=streamed, steps_per_call=together
        )
        assert fed.in_axis == (0 if streamed else None)

        def examples(pixels, places):
            return [(pixels[j] if fed.in_axis == 0 else pixels)[places[j]] for j in range(len(places))]

        if (devices, together) == (8, 3):
            mapped = jax.pmap(examples, in_axes=(fed.in_axis, 0), devices=jax.devices()[:devices])
        else:  # the same of numpy's arrays

            def mapped(pixels, places):
                own = np.asarray(pixels) if fed.in_axis == 0 else [jax.tree.map(np.asarray, pixels)] * devices
                return zip(*map(examples, own, np.asarray(places)), strict=True)

        found[streamed] = []
        for batch in first_items(4, fed.batches(61)):  # an epoch ends in step 62
            steps = mapped(batch.pixels, batch.pixel_indices)
            found[streamed] += zip(batch.indices, map(np.asarray, steps), strict=True)
    assert len(found[False]) == (-61 % together or together) + 3 * together
    images = data.load("digits").train
    for n, (resident, ahead) in enumerate(zip(found[False], found[True], strict=True), 61):
        for indices, taken in (resident, ahead):
            np.testing.assert_array_equal(indices, order().indices(n, BATCH))
            np.testing.assert_array_equal(taken.reshape(BATCH, 8, 8, 1), images[indices])
    assert gone()


@pytest.mark.parametrize("batch", [1, 7, 64, 2000])
def test_an_array_in_memory_may_be_streamed_too(batch):
    images = data.load("digits").train
    for step, found in enumerate(first_items(5, read_ahead(images, order(), batch, 0))):
        np.testing.assert_array_equal(found, images[order().indices(step, batch)])


def test_it_goes_on_at_any_step(unread):
    straight = first_items(8, read_ahead(unread, order(), BATCH, 0))
    for step in (3, 7, 0):
        np.testing.assert_array_equal(first_items(1, read_ahead(unread, order(), BATCH, step))[0], straight[step])


def test_a_batch_may_hold_several_epochs():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    (found,) = first_items(1, read_ahead(images, order(5), 20, 0))
    assert np.bincount(found.ravel()).tolist() == [4] * 5


def test_images_that_are_not_in_memory_are_indexed_as_arrays_are(unread):
    images = data.load("digits").train
    assert (unread.shape, unread.dtype, unread.nbytes, len(unread)) == (
        images.shape, images.dtype, images.nbytes, len(images),
    )  # fmt: skip
    for which in (3, -1, slice(2, 9), slice(None, None, 300), np.array([5, 5, 0]), np.array([[1, 2], [3, 4]])):
        np.testing.assert_array_equal(unread[which], images[which])
    np.testing.assert_array_equal(np.asarray(unread), images)
    with pytest.raises(IndexError):
        unread[len(images)]


def test_more_than_two_gib_are_streamed_unless_told_otherwise():
    small, large = (np.broadcast_to(np.uint8(0), (n, 1024, 1024, 1)) for n in (2048, 2049))
    assert [is_streamed(pixels, setting) for pixels in (small, large) for setting in (None, True, False)] == [
        False, True, False, True, True, False,
    ]  # fmt: skip


# Reading ahead


def test_only_so_much_is_read_ahead():
    """Batches of 8 images that count as 2^25 bytes each: four of them are ahead beside the one that is taken."""
    slow = Slow()
    unread = data.LazyImages(slow)
    unread.nbytes = len(slow) * READ_AHEAD_BYTES // 32
    batches = read_ahead(unread, order(10_000), 8, 0)
    with contextlib.closing(batches):
        for taken in (1, 2):
            next(batches)
            end = time.monotonic() + 5
            while len(slow.read) < 8 * (4 + taken) and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(0.05)
            assert len(slow.read) == 8 * (4 + taken)


def test_images_are_read_while_the_step_is_at_work():
    # 32 images of 20 ms, and steps of 100 ms: one after the other, a step takes 740 ms; at the same time, about 100.
    batches = read_ahead(data.LazyImages(Slow(0.02)), order(10_000), 32, 0)
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
    assert gone()  # those of other tests
    batches = read_ahead(data.LazyImages(Slow(0.001)), order(10_000), 16, 0)
    for _ in range(taken):
        next(batches)
    assert bool(threads()) == bool(taken)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 1
    assert gone()
    with pytest.raises(StopIteration):
        next(batches)


def test_no_thread_is_left_when_it_is_forgotten():
    batches = read_ahead(data.LazyImages(Slow()), order(10_000), 16, 0)
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
    content, offset = bytearray(file.read_bytes()), -1
    for _ in range(image + 1):
        offset = bytes(content).index(b"IHDR", offset + 1)
    content[offset] ^= 255
    file.write_bytes(content)
    return data.LazyImages(reader.open_readers(f"tfds:figures@{tmp_path}")[0])


def test_a_bad_image_ends_the_step_that_needs_it_and_no_other(home, tmp_path):
    unread, image, images = damaged(home, tmp_path, 7), 7, data.load("digits").train
    bad = next(step for step in itertools.count() if image in order().indices(step, BATCH))
    start = max(bad - 4, 0)
    assert bad > start
    batches = read_ahead(unread, order(), BATCH, start)
    for step in range(start, bad):
        np.testing.assert_array_equal(next(batches), images[order().indices(step, BATCH)])
    with pytest.raises(ValueError, match=r"tfds:figures@.*: image 7 of the split 'train' cannot be read") as error:
        next(batches)
    assert f"in the batch of step {bad}" in error.value.__notes__
    assert gone()
    # from the next step on all is well
    np.testing.assert_array_equal(
        first_items(1, read_ahead(unread, order(), BATCH, bad + 1))[0], images[order().indices(bad + 1, BATCH)]
    )


# What is refused


@pytest.mark.parametrize(("batch", "devices"), [(20, 8), (0, 1), (3, 2)])
def test_a_batch_that_does_not_divide_is_refused(unread, batch, devices):
    with pytest.raises(
        ValueError, match=f"batch must be divisible by the number of devices, got {batch} over {devices}"
    ):
        make_device_loader(unread, order(), batch, jax.devices()[:devices])


@pytest.mark.parametrize("image", [np.zeros((1, 1, 1), np.uint16), np.zeros((2, 1, 1), np.uint8)])
def test_an_image_of_another_kind_is_refused(image):
    class Odd(Slow):
        def __getitem__(self, i):
            return image

    with pytest.raises(ValueError, match=r"slow: image \d+ is uint(8|16) \([12], 1, 1\), expected uint8 \(1, 1, 1\)"):
        first_items(1, read_ahead(data.LazyImages(Odd()), order(10_000), 4, 0))
