"""A step that was not finite, taken again: the same numbers, and the layer where it began."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny_run
from flax import traverse_util

from ddpm_jax import config as configs
from ddpm_jax import data, trainer, training
from ddpm_jax.conditions import DatasetConditions
from ddpm_jax.guidance import Condition
from ddpm_jax.model import build, network
from ddpm_jax.trainer import replay

CONFIG = dataclasses.replace(tiny_run.CONFIG, batch=16, net=configs.Net(8, (1,), 1, (), dropout=0.1))
STRATIFIED = dataclasses.replace(CONFIG, batch=20, data=configs.Data(flip=True), loss=configs.Loss(stratified=True))
"""As many examples as times: each time once."""


@pytest.fixture(scope="module")
def params():
    """Random ones, as of a network that is being trained."""
    config = CONFIG
    net = network(config, 1)
    drawn = tiny_run.random_params(net, np.zeros((1, 8, 8, 1), np.float32), np.ones(1, np.int32))["params"]
    return jax.tree.map(np.asarray, drawn)


def record(params, config=CONFIG, step=7):
    return replay.Record(config, step, data.load("digits").train[: config.batch], 17, params)


def spoilt(params, path):
    """The parameters, one of them as large as float32 can be, its signs kept."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({**flat, path: np.copysign(np.float32(3e38), flat[path])}, sep="/")


def test_a_replay_is_the_step_that_training_takes(params):
    config = STRATIFIED
    model = build(config, (8, 8, 1), 17)
    dump = record(params, config)
    step = trainer.parallelise(trainer.train_step(model, trainer.example_losses(model)), None, jax.devices()[:4])
    state = training.init(params, model.optimizer)._replace(step=np.int32(dump.step - 1))
    places = np.arange(20, dtype=np.int32).reshape(4, 1, 5)
    metrics = step(trainer.run_keys(config.seed)[1], state, np.int32(0), dump.images, places, Condition(), None)[2]
    metrics = jax.tree.map(lambda leaf: leaf[0], metrics)
    found = replay.replay(dump, "float32")
    assert found.finite and not found.forward and not found.backward
    np.testing.assert_allclose([found.loss, found.grad_norm], [metrics["loss"], metrics["grad_norm"]], rtol=2e-5)
    assert sorted(found.times) == [*range(1, 21)]
    np.testing.assert_allclose(metrics["quarter_share"], [0.25] * 4, rtol=1e-6)


@pytest.mark.parametrize(
    "path",
    [
        "temb/dense0/kernel",
        pytest.param("conv_in/kernel", marks=pytest.mark.slow),
        "up_0/block_1/norm2/scale",
    ],
)
def test_the_layer_that_overflows_is_named(params, path):
    config = dataclasses.replace(CONFIG, net=dataclasses.replace(CONFIG.net, remat=True))
    found = replay.replay(record(spoilt(params, path), config), "float32")
    assert not found.finite and found.forward == path.rpartition("/")[0]
    assert not np.isfinite(found.losses).any()


def test_where_only_the_gradient_overflows_its_layer_is_named(params):
    """Outputs of 1e16 have squares that float32 can hold; times 1e28, its gradients go beyond."""
    flat = traverse_util.flatten_dict(params, sep="/")
    factors = {"conv_out/kernel": 1e28, "norm_out/scale": 1e-12, "norm_out/bias": 1e-12}
    large = {name: leaf * np.float32(factors.get(name, 1)) for name, leaf in flat.items()}
    found = replay.replay(record(traverse_util.unflatten_dict(large, sep="/")), "float32")
    assert np.isfinite(found.loss) and not found.forward and found.backward == "norm_out"


@pytest.mark.slow
def test_bfloat16_is_taken_again_in_both_precisions(params):
    dump = record(params)
    whole, half = replay.replay(dump, "float32"), replay.replay(dump, "bfloat16")
    assert whole.finite and half.finite and whole.loss != half.loss
    np.testing.assert_allclose(half.loss, whole.loss, rtol=0.02)


def test_the_program_reads_what_training_leaves(params, tmp_path):
    dump = record(spoilt(params, "down_0/block_0/conv1/kernel"))
    path = written(tmp_path, arrays_of(dump))
    read = replay.load_record(path)
    assert jax.tree.all(jax.tree.map(np.array_equal, read.params, dump.params)) and read.step == 7
    lines = list(replay.report_lines(replay.replay(read, "float32"), read, "float32"))
    assert "in float32: loss nan" in lines[0]
    assert re.search(r"the loss of 16 of 16 examples is not finite: 0 at t = \d+, 1 at", lines[1])
    assert "forward, the first output that is not finite is that of down_0/block_0/conv1" in lines[2]


def test_a_record_of_super_resolution_has_no_small_images(tmp_path):
    """The step makes them of its images, also when it is taken again."""
    config = dataclasses.replace(CONFIG, condition=configs.Condition(super_resolution_factor=2))
    params = trainer.init_params(build(config, (8, 8, 1), 17), trainer.run_keys(0)[0])
    rows = DatasetConditions(config, data.load("digits")).gather(np.arange(16))._asdict()
    said = {f"said.{name}": leaf for name, leaf in rows.items() if leaf is not None}
    path = written(tmp_path, arrays_of(record(params, config)) | said, config)
    assert replay.replay(replay.load_record(path), "float32").finite


def arrays_of(dump):
    """As training leaves them."""
    leaves = jax.tree_util.tree_flatten_with_path(dump.params)[0]
    arrays = {"params" + jax.tree_util.keystr(where): leaf for where, leaf in leaves}
    return {"step": 7, "indices": np.arange(len(dump.images)), "images": dump.images, "levels": 17, **arrays}


def written(folder, arrays, config=CONFIG):
    (folder / "config.json").write_text(configs.to_json(config))
    path = folder / "nonfinite-step-7.npz"
    np.savez(path, **arrays)
    return path


KERNEL = "params['conv_in']['kernel']"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"step": None}, "step is not a file in the archive"),
        ({"step": 0}, "step 0 of images"),
        ({"step": np.arange(3)}, "only .*arrays can be converted"),
        ({"levels": np.arange(3)}, "Range"),
        ({"levels": 3}, "images hold the value 1., and have levels 0 to 2"),
        ({"images": np.zeros((3, 8, 8, 1), np.uint8)}, r"step 7 of images \(3, 8, 8, 1\), but the run.s batch is 16"),
        ({"images": np.zeros((16, 8, 8, 3), np.uint8)}, r"conv_in/kernel is float32 \(3, 3, 1, 8\), the run's"),
        ({"images": np.zeros(16, np.uint8)}, "tuple index out of range"),
        ({"images": np.zeros((16, 8, 8, 1), complex)}, "expected images of type uint8"),
        ({KERNEL: None}, r"conv_in/kernel is None, the run's network has float32 \(3, 3, 1, 8\)"),
        ({KERNEL: np.zeros((3, 3, 1, 9), np.float32)}, r"conv_in/kernel is float32 \(3, 3, 1, 9\), the run's"),
        ({"params['more']": np.zeros(1)}, r"more is float64 \(1,\), the run's network has None"),
        ({f"{KERNEL}['more']": np.zeros(1)}, "indices"),
        ({"said.label": np.zeros(16, int)}, "the record has no label"),
    ],
)
def test_a_record_that_is_damaged_or_another_runs_is_named(params, tmp_path, change, text):
    arrays = {name: leaf for name, leaf in {**arrays_of(record(params)), **change}.items() if leaf is not None}
    path = written(tmp_path, arrays)
    with pytest.raises(ValueError, match=rf"{path} is not a record of a step, or not a whole one: .*{text}"):
        replay.load_record(path)


def test_a_record_that_is_cut_or_has_one_other_byte_is_named(params, tmp_path):
    path = written(tmp_path, arrays_of(record(params)))
    whole = path.read_bytes()
    for offset in np.linspace(0, len(whole) - 1, 40).astype(int):
        for damaged in (whole[:offset], whole[:offset] + bytes([whole[offset] ^ 255]) + whole[offset + 1 :]):
            path.write_bytes(damaged)
            try:
                replay.load_record(path)  # a byte of no meaning, such as a time of the archive's, may be another
            except ValueError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("text", ["", "[", "[]", '{"steps": "many"}', '{"batch": 0}', '{"net": {"channels": "8"}}'])
def test_the_config_of_a_record_that_is_damaged_is_named(params, tmp_path, text):
    path = written(tmp_path, arrays_of(record(params)))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'config.json'} is not "):
        replay.load_record(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK", "is not a record of a step, or not a whole one"),
        (None, "no file .*: a record must be in the folder of its run, next to config.json"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, text):
    (tmp_path / "config.json").write_text(json.dumps({}))
    path = tmp_path / "nonfinite-step-7.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        replay.load_record(path)
