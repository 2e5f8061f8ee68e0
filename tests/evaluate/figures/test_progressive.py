"""Progressive generation: the images are those of sample.py."""

import json

import numpy as np
from shared_evaluation import evaluation_context, picture_column, samples_of_sample_py

from ddpm_jax import data, pipeline
from ddpm_jax.config import Sampling, former_names
from ddpm_jax.evaluate.figures import progressive
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions


def test_hashes_are_those_of_16_bit_images_where_the_data_are_such(run_folder, tmp_path):
    """Data of type uint16 may have few levels, as here 17."""
    run = evaluation_context(run_folder, tmp_path, sampler="ddim", steps=4)
    run.model.dtype = np.dtype(np.uint16)
    progressive.run(run, ProgressiveOptions(num=2, frames=2))
    (path,) = tmp_path.glob("progressive-*.json")
    images = [run.model.to_pixels(part.x) for part in run.model.draw(seed=0, start=0, num=2)]
    assert images[0].dtype == np.uint16
    expected = [pipeline.image_hash(image) for image in np.concatenate(images)]
    assert json.loads(path.read_text())["sha256"] == expected


def test_the_last_column_is_the_image_that_sample_py_draws(run_folder, tmp_path, capsys):
    run = evaluation_context(run_folder, tmp_path, sampler="ddim", steps=4)
    progressive.run(run, ProgressiveOptions(num=5, start=2, seed=3, frames=3))
    assert "images 2..6 of seed 3; columns: x_t at t = 20, 7, 0" in capsys.readouterr().out
    drawn = samples_of_sample_py(run_folder)
    (name,) = tmp_path.glob("progressive-*.json")
    ours, theirs = (json.loads(path.read_text()) for path in (name, drawn / "manifest.json"))
    assert ours["sha256"] == theirs["sha256"][2:7] and len(set(ours["sha256"])) == 5
    assert ours["kept"] == [20, 7, 0] and ours["fingerprint"] == theirs["fingerprint"]
    images = np.load(drawn / "samples.npz")["arr_0"][2:7]
    shown = picture_column(name.with_suffix(".png"), 2)
    np.testing.assert_allclose(shown, images[..., 0] * (255 / 16), atol=8.5)  # half a level of 17
    text = data.read_png(name.with_suffix(".png")).text
    assert "t = 20, 7, 0" in text["legend"]
    assert json.loads(text["sampling"]) == former_names(theirs["sampling"], Sampling)
    assert name.with_suffix(".gif").stat().st_size > 0
