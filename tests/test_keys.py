"""A seed and an index make the same draws whatever JAX's settings say; other keys and numbers are refused."""

import contextlib
import functools
import json
import re

import jax
import numpy as np
import pytest
from run_programs import TINY, assert_same_bytes, load_state, run, run_process

from ddpm_jax import config as configs
from ddpm_jax import (
    conformance,
    data,
    gaussian,
    guidance,
    keys,
    likelihood,
    losses,
    process,
    samplers,
    schedules,
    trainer,
    training,
)
from ddpm_jax.model import check

SCHEDULE = schedules.linear(20, 5e-3, 0.6)
X = np.linspace(-1, 1, 4 * 3, dtype=np.float32).reshape(4, 3)
PIXELS = np.zeros((4, 2, 2, 1), np.uint8)
TEXTS = np.tile(np.arange(1, 6, dtype=np.uint8)[:, None], (4, 1, 2))


@contextlib.contextmanager
def generator(name):
    with jax.default_prng_impl(name):
        yield


@contextlib.contextmanager
def seed_offset(number):
    before = jax.config.jax_random_seed_offset
    jax.config.update("jax_random_seed_offset", number)
    yield
    jax.config.update("jax_random_seed_offset", before)


SETTINGS = {
    "rbg": lambda: generator("rbg"),
    "unsafe_rbg": lambda: generator("unsafe_rbg"),
    "x64": lambda: jax.enable_x64(True),
    "offset": lambda: seed_offset(1),
}


def drawn():
    """What is drawn of a seed, by name."""
    own = samplers.image_keys(3, range(4))
    run_key, order_key = trainer.run_keys(2**31 + 5)[1:3]
    dropped = guidance.drop_condition(own, np.arange(4), np.full(4, 9), 0.5)
    return {
        "x_T": samplers.initial_noise(own, (3,)),
        "one of eight": samplers.initial_noise(samplers.image_keys(3, [keys.MAX_IMAGES - 1]), (3,)),
        "times": losses.uniform_times(own, 1000),
        "stratified": losses.stratified_times(run_key, 1000, np.arange(4), 4),
        "examples": samplers.initial_noise(training.step_keys(run_key, 7, np.arange(4)), (3,)),
        "order": data.EpochShuffle(order_key, 50).indices(2, 40),
        "mirrored": data.random_flip(own, X[:, :, None]),
        "dropped": dropped,
        "text": guidance.random_caption(own, TEXTS),
        "law": conformance.sample_data(own, conformance.checks.MIXTURE),
    }


@functools.cache
def usual():
    return drawn()


@pytest.mark.parametrize("setting", SETTINGS)
def test_draws_of_a_seed_do_not_depend_on_settings(setting):
    expected = usual()
    with SETTINGS[setting]():
        found = drawn()
    for name, value in expected.items():
        value, other = np.asarray(value), np.asarray(found[name])
        np.testing.assert_allclose(other, value, rtol=1e-6, atol=1e-6, err_msg=name)  # x64 has another arithmetic
        assert setting == "x64" or other.tobytes() == value.tobytes(), name


def test_the_key_of_a_seed_is_that_of_jax():
    for seed in (0, 1, 2**31, 2**32 - 1):
        same = jax.random.key(seed, impl="threefry2x32")
        assert keys.from_seed(seed).dtype == same.dtype
        np.testing.assert_array_equal(*map(jax.random.key_data, (keys.from_seed(seed), same)))
    traced = jax.jit(lambda seed, i: jax.random.key_data(samplers.image_keys(seed, i)))(3, np.arange(4))
    np.testing.assert_array_equal(traced, jax.random.key_data(samplers.image_keys(3, range(4))))


def test_image_5_of_eight_is_image_5_alone_whatever_the_default_generator():
    with generator("rbg"):
        eight = samplers.initial_noise(samplers.image_keys(0, range(8)), (3,))
        alone = samplers.initial_noise(samplers.image_keys(0, [5]), (3,))
    np.testing.assert_array_equal(eight[5], alone[0])


# --- keys of another kind, where an image would depend on its neighbours


def net(x, t):
    return 0.5 * x


def denoise(x, t):
    return gaussian.Estimate(0.5 * x, x)


OTHERS = {
    "example_keys": lambda own, key: keys.example_keys(key, 4),
    "split_keys": lambda own, key: keys.split_keys(own, 2),
    "standard_normal": lambda own, key: keys.standard_normal(own, X),
    "simple_loss": lambda own, key: losses.simple_loss(key, SCHEDULE, net, X),
    "uniform_times": lambda own, key: losses.uniform_times(own, 20),
    "bound": lambda own, key: likelihood.vlb(own, SCHEDULE, denoise, X, decoder=likelihood.gaussian_density),
    "initial_noise": lambda own, key: samplers.initial_noise(own, (3,)),
    "step_noise": lambda own, key: samplers.step_noise(own, 5, X),
    "sample": lambda own, key: samplers.sample(own, samplers.ddim(SCHEDULE, denoise), X, samplers.times(20, 2)),
    "drop": lambda own, key: guidance.drop_condition(own, X, X, 0.5),
    "one_text": lambda own, key: guidance.random_caption(own, TEXTS),
    "step_keys": lambda own, key: training.step_keys(key, 0, np.arange(4)),
    "Order": lambda own, key: data.EpochShuffle(key, 5),
    "examples": lambda own, key: data.gather_examples(own, PIXELS, np.arange(4), levels=2, flip=True),
    "mirrored": lambda own, key: data.random_flip(own, X[:, :, None]),
    "law": lambda own, key: conformance.sample_data(own, conformance.checks.MIXTURE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_keys_of_another_generator_are_refused_where_an_image_would_depend_on_its_neighbours(name):
    for kind in ("rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=kind)
        with pytest.raises(ValueError, match=r"of the generator threefry2x32, got key<[a-z_]*rbg>: .*keys.from_seed"):
            OTHERS[name](jax.random.split(key, 4), key)


# --- seeds and indices


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**63, 1.5, 0.0, True, "0", None, np.int64(-1), np.float32(1)])
def test_seeds_are_integers_below_2_to_the_32(wrong):
    for of in (keys.from_seed, trainer.run_keys, lambda seed: samplers.image_keys(seed, [0])):
        with pytest.raises(ValueError, match=r"seed must be an integer in 0\.\.4294967295, got "):
            of(wrong)


@pytest.mark.parametrize("wrong", [-1, 2**32 - 16, 2**32, 2**63, 1.5, True])
def test_indices_are_integers_that_no_other_stream_has(wrong):
    with pytest.raises(ValueError, match=r"an image's index must be an integer in 0\.\.4294967279, got "):
        samplers.image_keys(0, [0, wrong])


def test_a_step_and_an_epoch_are_numbers_that_a_key_can_be_folded_with():
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=r"step must be an integer in 0\.\.4294967295, got "):
            training.step_keys(keys.from_seed(0), wrong, np.arange(2))
    with pytest.raises(ValueError, match=r"epoch must be an integer in 0\.\.4294967295, got 4294967296"):
        data.EpochShuffle(keys.from_seed(0), 1).indices(2**32, 1)
    assert data.EpochShuffle(keys.from_seed(0), 1).indices(2**32 - 1, 1).tolist() == [0]


def test_no_stream_of_a_seed_has_an_images_index():
    streams = (
        keys.TRAINING_STREAM, keys.VLB_STREAM, keys.ENCODING_STREAM, keys.DECODING_STREAM, keys.MEASUREMENT_STREAM
    )  # fmt: skip
    assert len(set(streams)) == 5 and min(streams) >= keys.MAX_IMAGES and max(streams) < keys.SEED_LIMIT


WRONG = {
    "seed": (["--seed", 2**32], r"seed must be an integer in 0..4294967295, got 4294967296"),
    "start": (["--start", 2**32], r"images have indices 0\.\.4294967279: .*got 4294967296 and 1"),
    "num": (["--start", 2**32 - 17, "--num", 2], r"images have indices 0\.\.4294967279: .*got 4294967279 and 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_sample_refuses_before_it_writes(run_folder, tmp_path, name):
    flags, message = WRONG[name]
    done = run("sample.py", run_folder, "--num", 1, *flags, "--out", tmp_path / "out", status=2)
    assert re.search(message, done.stderr) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["likelihood", "samples", "table", "nfe", "progressive", "neighbours"])
def test_evaluate_refuses_a_seed_before_it_reads(tmp_path, command):
    done = run("-m", "ddpm_jax", "evaluate", tmp_path, command, "--seed", 2**32, status=2)
    assert "--seed must be an integer in 0..4294967295, got 4294967296" in done.stderr


def test_a_config_refuses_a_seed():
    for wrong in (-1, 2**32, 2**63):
        with pytest.raises(ValueError, match=rf"seed must be an integer in 0\.\.4294967295, got {wrong}"):
            check(configs.Config(seed=wrong))


# --- the programs


def test_the_programs_settle_what_would_change_draws(monkeypatch):
    monkeypatch.setattr(process, "_set_cpu_devices", lambda devices: None)
    monkeypatch.setattr(process, "tune_malloc", lambda: None)
    jax.config.update("jax_threefry_partitionable", False)
    jax.config.update("jax_enable_x64", True)
    process.initialize(compilation_cache_dir=False)
    assert jax.config.jax_threefry_partitionable and not jax.config.jax_enable_x64


@pytest.mark.slow
def test_sampling_training_and_resume_are_the_same_whatever_the_environment_says(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY.replace("save_every=10", "save_every=1"))

    def everything(name, env):
        folder = tmp_path / name
        train = "train.py", tmp_path / "tiny.py", "--devices", 1, "--workdir", folder
        run_process(*train, "--steps", 2, env=env)
        assert "continued from step 2" in run_process(*train, env=env).stdout
        run_process("sample.py", folder, "--devices", 1, "--num", 6, "--out", folder / "out", env=env)
        digests = [
            row["seen"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "seen" in row
        ]
        return load_state(folder).tree, digests, np.load(folder / "out" / "samples.npz")["arr_0"]

    state, digests, images = everything("default", {})
    environments = {
        "rbg": {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        "all": {
            "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg",
            "JAX_THREEFRY_PARTITIONABLE": "0",
            "JAX_ENABLE_X64": "1",
            "JAX_RANDOM_SEED_OFFSET": "7",
        },
    }
    for name, env in environments.items():
        other, other_digests, drawn = everything(name, env)
        assert_same_bytes(state, other)
        assert digests == other_digests and len(digests) == 3
        np.testing.assert_array_equal(images, drawn)


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 3, 11000)])
def test_uniform_numbers_of_the_host_are_jaxs(shape):
    key = jax.random.fold_in(keys.from_seed(2**32 - 1), 7)
    of_jax = jax.random.uniform(key, shape, minval=-1)
    np.testing.assert_array_equal(keys.uniform_on_host(key, shape), of_jax, strict=True)
