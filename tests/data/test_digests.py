"""Whether a run that goes on sees the images, labels and texts that it was trained on."""

import shutil

import numpy as np
import pytest
from image_files import random_pixels
from run_programs import run, saved_steps

from ddpm_jax import checkpoint
from ddpm_jax.data import digests
from ddpm_jax.data.dataset import LazyImages

SMALL = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule

config = Config(
    steps=1, batch=4, log_every=1, sample_every=0, save_every=1, data=Data("folder:{folder}", held_out=0.2),
    schedule=Schedule(T=4, beta_1=0.1, beta_T=0.6), net=Net(8, (1,), 1, (), num_classes=4),
    optim=Optim(learning_rate=1e-3, warmup=1), sampling=Sampling(steps=4, tile=4, num=4),
    evaluation=Evaluation(images=2, strata=2),
)
"""


def pictures(folder, *classes, side=8, dtype=np.uint8, seed=0):
    """Eight images of each class."""
    for k, name in enumerate(classes, seed):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(8):
            np.save(folder / name / f"{i}.npy", random_pixels(side, side, 1, dtype=dtype, seed=100 * k + i))


def another_class(folder):
    pictures(folder, "ant", seed=7)


def other_names(folder):
    (folder / "cat").rename(folder / "bird")


def other_kind(folder):
    shutil.rmtree(folder)
    pictures(folder, "cat", "cow", "dog", side=24, dtype=np.uint16)


def one_pixel(folder):
    image = np.load(folder / "cow" / "3.npy")
    image[0, 0, 0] ^= 1
    np.save(folder / "cow" / "3.npy", image)


def one_label(folder):
    """The order of the paths, and so of the images, is what it was."""
    (folder / "cat" / "7.npy").rename(folder / "cow" / "-.npy")


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """The folder of a run of one step, and what was shown."""
    home = tmp_path_factory.mktemp("content")
    pictures(home / "pictures", "cat", "cow", "dog")
    (home / "small.py").write_text(SMALL.format(folder=home / "pictures"))
    return home, run("train.py", home / "small.py", "--workdir", home / "run", preview=False).stdout


@pytest.fixture(scope="module")
def trained(began):
    return began[0]


def again(trained, status=0, steps=1, *flags):
    """The same command, with more steps."""
    arguments = (trained / "small.py", "--workdir", trained / "run", "--steps", steps, *flags)
    return run("train.py", *arguments, status=status, preview=False)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (
            another_class,
            "number then 19, now 26; 3 labels then, 4 now, number 0 was cat and is ant; labels of",
        ),
        (other_names, "3 labels then, 3 now, number 0 was cat and is bird. Restore"),
        (
            other_kind,
            "shape then [8, 8, 1], now [24, 24, 1]; type then uint8, now uint16; levels then 256, now 65536. R",
        ),
        (one_pixel, "now: their pixels have changed. Restore"),
        (one_label, "now: labels of single images have changed. Restore"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(trained, change, reported):
    folder = trained / "pictures"
    shutil.copytree(folder, trained / "kept")
    try:
        change(folder)
        shown = again(trained, status=2, steps=2).stderr
    finally:
        shutil.rmtree(folder)
        (trained / "kept").rename(folder)
    assert f"train: {trained / 'run'} was trained on other images than folder:{folder} has now: " in shown
    assert reported in shown, shown
    assert saved_steps(trained / "run") == [1]


def test_a_run_goes_on_with_its_images_in_memory_or_not(trained):
    for flags in ((), ("--data.stream", "True")):
        assert "the run is complete: 1 steps" in again(trained, 0, 1, *flags).stdout
    with checkpoint.Checkpoints(trained / "run" / "checkpoints", read_only=True) as saved:
        data = saved.meta()["data"]
    assert (
        data["images"] == 19 and set(data) == {"images", "pixels", "labels"} and set(data["pixels"]) == {"some", "all"}
    )


def test_a_label_without_a_training_image_is_named_and_not_drawn(began):
    home, shown = began
    assert "warning: 1 without training images, which stay untrained: 3\n" in shown
    refused = run("sample.py", home / "run", "--labels", "cat,3", "--num", 1, status=2).stderr
    assert "label '3' is requested, but no training image of this run has it" in refused


class Counted:
    """A reader of random images that notes which are read."""

    name, shape, dtype, levels, format = "counted", (4, 4, 1), np.dtype(np.uint8), 256, ""
    labels, label_names, captions = None, (), None

    def __init__(self, count):
        self.images, self.read = random_pixels(count, 4, 4, 1), []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(i)
        return self.images[i]


def test_of_images_that_are_not_in_memory_a_hundred_are_read():
    reader = Counted(12_345)
    found = digests.digests(LazyImages(reader))
    assert len(reader.read) == 100 and (reader.read[0], reader.read[-1]) == (0, 12_344)
    assert np.ptp(np.diff(reader.read)) <= 1  # evenly spaced
    assert set(found) == {"some"} and digests.digests(reader.images)["some"] == found["some"]
    one = reader.images.copy()
    one[reader.read[50]] ^= 1
    assert digests.digests(one)["some"] != found["some"]
    assert digests.digests(reader.images[:1])["all"] != digests.digests(reader.images[:2])["all"]


def test_what_a_checkpoint_does_not_say_is_not_compared():
    image = {"shape": [8, 8, 1], "levels": 17, "dtype": "uint8", "format": "npz", "label_names": ["a", "b"]}
    now = {"image": image, "data": {"images": 4, "pixels": {"some": "x", "all": "y"}, "labels": {"all": "z"}}}
    for was in (
        {},
        {"image": {"shape": [8, 8, 1], "levels": 17}},
        {"image": image | {"format": "", "label_names": []}},
        {"image": image | {"label_names": ["0", "1"]}},  # of labels without names
        {"image": image, "data": {"images": 4, "pixels": {"some": "x"}}},
    ):
        assert digests.differences(was, now) == []
    assert digests.differences({"image": image | {"levels": 16}}, now) == ["levels then 16, now 17"]
    accent = [{"image": {"label_names": [name]}} for name in ("caf\u00e9", "cafe\u0301")]  # one name in two forms
    assert digests.differences(*accent) == digests.differences(*accent[::-1]) == []
