"""Networks that see another image beside their own: a coarser one to refine, or the other one of a pair."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from run_programs import TINY, run

from ddpm_jax import config as configs
from ddpm_jax import data, guidance, pipeline, trainer
from ddpm_jax.conditions import DatasetConditions
from ddpm_jax.config import flags
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build, check

COARSE = dataclasses.replace(tiny_run.CONFIG, condition=configs.Condition(super_resolution_factor=2))
SMALL = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    tiny_run.make_run(folder / "run", COARSE)
    data.write_image(folder / "small.png", SMALL, "png")
    data.write_image(folder / "other.png", SMALL[::-1], "png")
    data.write_image(folder / "large.png", np.zeros((8, 8, 1), np.uint8), "png")
    train = data.load("digits").train[:40]
    np.savez(folder / "here.npz", train=train, test=train[:8])
    np.savez(folder / "there.npz", train=np.repeat(16 - train, 2, axis=-1), test=np.repeat(16 - train[:8], 2, axis=-1))
    np.savez(folder / "few.npz", train=train[:30], test=train[:8])
    return folder


def paired(home, there="there.npz", channels=2, flip=False):
    return dataclasses.replace(
        tiny_run.CONFIG,
        data=configs.Data(f"npz:{home / 'here.npz'}", levels=17, flip=flip),
        condition=configs.Condition(paired=f"npz:{home / there}", paired_channels=channels),
    )


def loaded(config):
    return data.load(config.data.source, levels=config.data.levels)


@functools.cache
def model(home):
    return pipeline.Pipeline(home / "run", step=None, weights="ema", sampling={"steps": 4})


def test_a_coarser_image_has_the_means_of_squares():
    x = jax.random.normal(from_seed(0), (2, 4, 6, 3))
    found = guidance.block_average(x, 2)
    np.testing.assert_allclose(found[:, 2:4, 4:6].std((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(found[:, 3, 5], x[:, 2:4, 4:6].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(guidance.block_average(found, 2), found, atol=1e-6)
    np.testing.assert_allclose(found.mean((1, 2)), x.mean((1, 2)), atol=1e-6)
    volume = jax.random.normal(from_seed(1), (1, 2, 4, 4, 1))
    np.testing.assert_allclose(guidance.block_average(volume, 2)[0, 1, 3, 0, 0], volume[0, :, 2:, :2].mean(), atol=1e-6)
    with pytest.raises(ValueError, match=r"a factor of 4 does not divide the image's sizes \(4, 6\)"):
        guidance.block_average(x, 4)


def losses_with(config, images, index):
    """The loss of example 3 at a fixed time, by a network that gives back what it is shown."""

    class Mirror:
        def apply(self, variables, x_t, t, condition, dropout_keys):
            shown.append(condition.image)
            return 0 * x_t

    shown: list = []
    rows = DatasetConditions(config, images).gather(np.array([index]))
    model = dataclasses.replace(build(config, images.train.shape[1:], images.levels), network=Mirror())
    of = trainer.example_losses(model)
    keys = jax.random.split(from_seed(index), 1)
    of({}, keys, images.train, jnp.array([index]), jnp.array([5]), rows)
    return shown[0], keys


def test_in_training_the_network_is_shown_the_image_made_coarser():
    images = data.load("digits")
    shown, _ = losses_with(COARSE, images, 3)
    x0 = data.normalize(images.train[3:4], 17)
    np.testing.assert_allclose(shown, guidance.block_average(x0, 2), atol=1e-6)
    held = DatasetConditions(COARSE, images, held_out=True).gather_first_text(np.arange(2))
    np.testing.assert_allclose(held.image, guidance.block_average(data.normalize(images.test[:2], 17), 2), atol=1e-6)


def test_pairs_stay_pairs_when_they_are_mirrored(home):
    config = paired(home, flip=True)
    images = loaded(config)
    unmirrored = set()
    for index in range(12):
        shown, keys = losses_with(config, images, index)
        flip_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
        x0 = data.gather_examples(flip_keys, images.train, jnp.array([index]), levels=17, flip=True)
        np.testing.assert_allclose(shown[..., :1], -x0, atol=1e-6)  # 16 - v
        unmirrored.add(bool((np.asarray(x0) == np.asarray(data.normalize(images.train[index : index + 1], 17))).all()))
    assert unmirrored == {True, False}  # some are mirrored, and some not


@pytest.mark.parametrize(
    ("there", "channels", "text"),
    [
        (
            "there.npz",
            0,
            r"images \(8, 8, 2\), and \(8, 8, 1\) are the conditioning images.*--condition.paired-channels",
        ),
        ("few.npz", 1, "30 training and 8 held-out images.*cannot be pairs"),
    ],
)
def test_what_are_no_pairs_is_refused(home, there, channels, text):
    config = paired(home, there, channels)
    with pytest.raises(ValueError, match=text):
        DatasetConditions(config, loaded(config))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"condition": {"super_resolution_factor": 1}}, "condition.super_resolution_factor must be 0 or at least 2"),
        ({"condition": {"super_resolution_factor": 2, "paired": "digits"}}, "exclude each other"),
    ],
)
def test_configs_of_no_other_image_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        check(configs.from_dict(change))


def test_an_image_that_is_shown_is_part_of_what_is_drawn(home):
    def drawn(*names, start=0, num=4):
        wanted = flags.ConditionOptions(image=tuple(str(home / name) for name in names))
        requested = model(home).with_request(pipeline.parse_request(wanted, flags.SamplingOptions(), model(home)))
        return np.concatenate([part.x for part in requested.draw(seed=2, start=start, num=num)])

    one, both = drawn("small.png"), drawn("small.png", "other.png")
    np.testing.assert_array_equal(both[::2], one[::2])
    assert np.abs(both - one)[1::2].max() > 1e-3
    np.testing.assert_array_equal(drawn("small.png", "other.png", start=3, num=1)[0], both[3])


def test_other_images_than_the_network_sees_are_refused(home, run_folder):
    def requested(run, name):
        return pipeline.parse_request(flags.ConditionOptions(image=(str(home / name),)), flags.SamplingOptions(), run)

    with pytest.raises(ValueError, match=r"--image .*large.png: 8x8x1 uint8; this run has 4x4x1 uint8 there"):
        requested(model(home), "large.png")
    with pytest.raises(FileNotFoundError, match=r"--image: there is no file .*none.png"):
        requested(model(home), "none.png")
    with pytest.raises(ValueError, match="takes a conditioning image: give --image FILE"):
        next(model(home).draw(seed=0, start=0, num=1))
    for name in ("small.png", None):
        again = model(home).with_request(requested(model(home), name) if name else pipeline.ConditionRequest())
        with pytest.raises(ValueError, match="an unconditional network, and this run's takes a conditioning image"):
            again.denoiser(again.params)
    plain = pipeline.Pipeline(run_folder, step=None, weights="ema", sampling={})
    with pytest.raises(ValueError, match="this run's network takes no conditioning image"):
        requested(plain, "small.png")


def test_a_missing_file_of_pairs_is_named_and_not_taken_for_a_folder_that_cannot_be_written(home):
    (home / "tiny.py").write_text(TINY)
    args = ("--workdir", home / "none", "--condition.paired", f"npz:{home / 'none.npz'}")
    shown = run("train.py", home / "tiny.py", *args, status=2)
    assert shown.stderr.startswith(f"train: load: no file {home / 'none.npz'}") and "written" not in shown.stderr


def test_a_run_of_pairs_trains_and_its_samples_are_made_again(home):
    text = TINY.replace("import Config", "import Condition, Config").replace(
        'data=Data("digits", flip=True)',
        f"data=Data('npz:{home / 'here.npz'}', levels=17, flip=True), "
        f"condition=Condition(paired='npz:{home / 'there.npz'}', paired_channels=2)",
    )
    (home / "pairs.py").write_text(text)
    run("train.py", home / "pairs.py", "--workdir", home / "pairs", "--steps", 3)
    data.write_image(home / "two.npy", np.full((8, 8, 2), 3, np.uint8), "npy")
    out = home / "out"
    run("sample.py", home / "pairs", "--image", home / "two.npy", "--num", 3, "--steps", 3, "--out", out)
    record = json.loads((out / "manifest.json").read_text())["asked"]["images"]
    assert record[0][0] == str(home / "two.npy") and len(record[0][1]) == 64
    shown = run("sample.py", home / "pairs", "--verify", out / "manifest.json")
    assert "equal: all 3 images" in shown.stdout
    data.write_image(home / "two.npy", np.full((8, 8, 2), 4, np.uint8), "npy")
    refused = run("sample.py", home / "pairs", "--verify", out / "manifest.json", status=2)
    assert "two.npy has other pixels than when these images were made" in refused.stderr
