"""Predicted x_0 over time, against closed forms.

For data N(0, I) the ideal denoiser is x_0 = signal_t x_t.
"""

import numpy as np
import pytest
from shared_evaluation import ideal_model, picture_column

from ddpm_jax import data
from ddpm_jax.evaluate import extractors, protocol, samples
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext
from ddpm_jax.evaluate.figures import figure, predictions
from ddpm_jax.evaluate.figures.predictions import PredictionsOptions
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions


def test_predictions_are_labelled_with_the_time_they_are_made_from(run_folder, tmp_path):
    """At every time of the chain x_0 is signal_t x_t, and its error has the variance of x_0 given x_t."""
    model = ideal_model(run_folder)
    x = figure.draw_states(model, ProgressiveOptions(num=40), model.times.tolist())
    found = predictions.measure(
        EvaluationContext(model, CommonFlags(), tmp_path), PredictionsOptions(num=40, frames=20)
    )
    np.testing.assert_array_equal(found.times, np.arange(20, 0, -1))
    signal = np.asarray(model.schedule.signal)
    expected = signal[found.times][:, None, None, None] * x[:, :-1]
    np.testing.assert_allclose(found.x0, expected, rtol=1e-5, atol=1e-6)
    for k, t in enumerate(found.times):
        value, error = figure.rmse(found.squared_error[:, k])
        assert abs(value - 127.5 * np.sqrt(signal[1] ** 2 - signal[t] ** 2)) <= 4 * (0 if t == 1 else error)


def test_the_last_prediction_is_the_image(run_folder, tmp_path, capsys):
    run = EvaluationContext(ideal_model(run_folder), CommonFlags(), tmp_path)
    predictions.run(run, PredictionsOptions(num=3, frames=5))
    out = capsys.readouterr().out
    assert "x_0 predicted from x_t at t = 20, 15, 10, 6, 1" in out
    (path,) = tmp_path.glob("predictions-*.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [int(row[0]) for row in rows] == [20, 15, 10, 6, 1] and header[0] == "t"
    assert float(rows[-1][-2]) == 0 < float(rows[0][-2])
    numbers = protocol.read_measurements(path.with_suffix(".json"))
    assert [number.value for number in numbers] == pytest.approx([float(row[-2]) for row in rows], rel=1e-6)
    (image,) = run.model.draw(seed=0, start=0, num=3)
    np.testing.assert_array_equal(picture_column(path.with_suffix(".png"), 4), data.to_integer(image.x, 256)[..., 0])
    assert ("curves in " in out) == path.with_name(f"{path.stem}-curve.png").exists()


def test_the_last_distance_is_that_of_the_samples(run_folder, tmp_path):
    """The images that the last predictions are have the Fréchet distance that the samples of that seed have."""
    run = EvaluationContext(ideal_model(run_folder), CommonFlags(), tmp_path)
    expected = {number.name: number.value for number in samples.measure(run, samples.SamplesOptions(num=160))}
    found = predictions.measure(run, PredictionsOptions(num=2, frames=5, quality=160))
    assert len(found.x0) == 2 and found.squared_error.shape == (160, 5)
    distance, bias = found.quality[-1]
    assert distance.value == pytest.approx(expected["Fréchet distance"], rel=1e-5)
    assert distance.protocol["features"] == extractors.load_extractor(run.model, "classifier", "").name
    assert bias.name == "its bias" and found.quality[0][0].value != distance.value


def test_too_few_images_for_a_distance_are_refused(run_folder, tmp_path):
    context = EvaluationContext(ideal_model(run_folder), CommonFlags(), tmp_path)
    with pytest.raises(ValueError, match="--quality must be 0 or at least --num, 8, got 3"):
        predictions.measure(context, PredictionsOptions(quality=3))
    with pytest.raises(ValueError, match="--quality must be above 64, the dimension of the features of digits-"):
        predictions.measure(context, PredictionsOptions(quality=64))
