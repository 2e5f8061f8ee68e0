"""Nearest training images: copies that were planted are found."""

import json
import shutil

import numpy as np
import pytest
import shared_evaluation
from shared_evaluation import evaluation_context, ideal_model

from ddpm_jax import config as configs
from ddpm_jax import data
from ddpm_jax.evaluate import sample_cache
from ddpm_jax.evaluate.figures import neighbours
from ddpm_jax.evaluate.figures.neighbours import NeighboursOptions
from ddpm_jax.pipeline import image_parts

DIGITS = data.load("digits")


@pytest.fixture(scope="module")
def drawn(run_folder, tmp_path_factory):
    """Eight samples, where the command looks for them before it draws any, and those samples."""
    out = tmp_path_factory.mktemp("drawn")
    run = evaluation_context(run_folder, out, steps=4)
    model = ideal_model(run_folder, steps=4)  # the network says nothing here, and to compile it takes seconds
    cache_folder = sample_cache.ensure_samples(run._replace(model=model), 8, 0, "integer")
    return out, np.concatenate(list(image_parts.read_chunks(cache_folder, 0, 8)))


def planted(folder, out, drawn, train, flip=False, dtype=np.uint8):
    """The run with these training images, its samples being drawn."""
    shutil.copytree(drawn[0], out, dirs_exist_ok=True)
    np.savez(out / "planted.npz", train=train.astype(dtype), test=DIGITS.test.astype(dtype))
    run = evaluation_context(folder, out, source=f"npz:{out / 'planted.npz'}", steps=4)
    return shared_evaluation.replace_config(run, data=configs.Data(levels=17, flip=flip))


def result(out):
    (path,) = out.glob("neighbours-*.json")
    return json.loads(path.read_text()), data.read_png(path.with_suffix(".png")).image[::8, ::8, 0]


@pytest.mark.parametrize(("flip", "dtype"), [(False, np.uint8), (True, np.uint8), (False, np.uint16)])
def test_a_planted_copy_comes_first(run_folder, tmp_path, drawn, flip, dtype):
    samples, train = drawn[1], DIGITS.train[:90].copy()
    train[37] = samples[5][:, ::-1] if flip else samples[5]
    run = planted(run_folder, tmp_path, drawn, train, flip, dtype)
    neighbours.run(run, NeighboursOptions(num=8, rows=3, k=2))
    found, picture = result(tmp_path)
    closest, next_closest, *_ = found["neighbours"]
    assert (closest["sample"], closest["train"][0], closest["mirrored"][0], closest["distance"][0]) == (5, 37, flip, 0)
    # the others by the formula: root mean square over pixels, over all training images, mirrored where training mirrors
    every = np.concatenate([train, train[:, :, ::-1]]) if flip else train
    direct = np.sqrt(((samples[:, None].astype(float) - every) ** 2).mean((2, 3, 4)))
    nearest = np.sort(direct, 1)[:, :2]
    assert next_closest["distance"] == pytest.approx(nearest[next_closest["sample"]], rel=1e-12)
    assert [row["sample"] for row in found["neighbours"]] == np.argsort(nearest[:, 0], kind="stable").tolist()
    median = next(
        n["value"] for n in found["numbers"] if n["name"] == "nearest training image, samples, median, RMS in levels"
    )
    assert median == pytest.approx(np.median(nearest[:, 0]))
    # columns of the picture: the sample, two pixels of grey, its neighbours
    np.testing.assert_array_equal(picture[1:9, 1:9], np.rint(samples[5][..., 0] * (255 / 16)))
    np.testing.assert_array_equal(picture[1:9, 11:19], picture[1:9, 1:9])
    assert picture.shape == (3 * 9 + 1, 10 + 2 * 9 + 1)


def test_volumes_are_mirrored_as_in_training(run_folder, tmp_path, monkeypatch):
    """Left to right, which is the last axis but the channels'."""
    volumes = np.random.default_rng(0).integers(0, 17, (60, 4, 4, 4, 1), np.uint8)
    loaded = data.Dataset(volumes[:30], volumes[30:50], None, None, 17, "npz:volumes")
    image_parts.write_part(tmp_path, 0, np.concatenate([volumes[50:57], volumes[7:8, :, :, ::-1]]))
    monkeypatch.setattr(neighbours, "load_images", lambda *args, **options: loaded)
    monkeypatch.setattr(sample_cache, "ensure_samples", lambda *args: tmp_path)
    run = shared_evaluation.replace_config(evaluation_context(run_folder, tmp_path), data=configs.Data(flip=True))
    neighbours.run(run, NeighboursOptions(num=8, rows=1, k=1))
    closest = result(tmp_path)[0]["neighbours"][0]
    assert closest == {"sample": 7, "train": [7], "mirrored": [True], "distance": [0.0]}


def test_copies_of_everything_are_called_copies(run_folder, tmp_path, drawn, capsys):
    run = planted(run_folder, tmp_path, drawn, np.concatenate([DIGITS.train[:40], drawn[1]]))
    neighbours.run(run, NeighboursOptions(num=8, rows=8, k=1, features="classifier"))
    found, _ = result(tmp_path)
    assert found["verdict"] == "copies" and f"verdict in pixels: {found['reason']}\n" in capsys.readouterr().out
    for row in found["neighbours"]:  # in the classifier's features as well, to the rounding of its batches
        assert row["train"] == [40 + row["sample"]] and row["distance"][0] < 1e-3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (NeighboursOptions(num=4, rows=5), "--rows must be 1 to --num, 4, got 5"),
        (NeighboursOptions(num=4, rows=1, k=1501), "--k must be 1 to 1500, the number of training images, got 1501"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused(run_folder, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        neighbours.run(evaluation_context(run_folder, tmp_path), options)
