"""Rate and distortion against closed forms and against the likelihood."""

import csv
import pathlib
import re

import numpy as np
import pytest
import shared_evaluation
from shared_evaluation import evaluation_context, ideal_model

from ddpm_jax import config as configs
from ddpm_jax.evaluate import likelihood, protocol
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext
from ddpm_jax.evaluate.figures import figure, rate_distortion
from ddpm_jax.evaluate.figures.rate_distortion import RateDistortionOptions
from ddpm_jax.evaluate.likelihood import LikelihoodOptions


def read_csv(path: pathlib.Path) -> rate_distortion.RateDistortion:
    """The curve that the command wrote, to seven digits."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    t, _, rmse, rate, received, error = np.array([[float(v or "nan") for v in row] for row in rows]).T
    return rate_distortion.RateDistortion(t.astype(np.int32), received, error, rate, rmse)


def test_rate_and_distortion_of_gaussian_data_are_the_known_ones(run_folder, tmp_path):
    """12,800 values: their mean square is known to sqrt(2 / 12800) = 1.25 %, and each squared error as well."""
    n, var, levels = 200, 1 / 25, 65536
    x0 = np.random.default_rng(0).normal(0, var**0.5, (n, 8, 8, 1))
    test = np.rint((x0 + 1) * (levels - 1) / 2).astype(np.uint16)
    np.savez(tmp_path / "gauss.npz", train=test[:2], test=test)
    which = CommonFlags(source=f"npz:{tmp_path / 'gauss.npz'}")
    ideal = EvaluationContext(ideal_model(run_folder, shared_evaluation.Narrow, tile=25), which, tmp_path)
    # so many levels that rounding to them is no matter
    ideal = shared_evaluation.replace_config(ideal, levels=levels, data=configs.Data(levels=levels))
    rate_distortion.run(ideal, RateDistortionOptions())
    (path,) = tmp_path.glob("rate_distortion-*.csv")
    found = read_csv(path)

    bar = np.r_[1, np.cumprod(1 - np.linspace(0.005, 0.6, 20))]  # the run's alpha-bar
    error = var * (1 - bar) / (bar * var + 1 - bar)  # of the ideal estimate at each t
    t = np.arange(20, 1, -1)
    beta = 1 - bar[t] / bar[t - 1]
    small = beta * (1 - bar[t - 1]) / (1 - bar[t])
    random = 0.5 * bar[t - 1] * (beta / (1 - bar[t])) ** 2 * error[t] / beta
    prior = 0.5 * (bar[-1] * var + (1 - bar[-1]) - 1 - np.log(1 - bar[-1]))
    known = np.r_[prior, prior + np.cumsum(0.5 * (np.log(beta / small) + small / beta - 1) + random)] / np.log(2)
    slack = 4 * (2 / x0.size) ** 0.5
    np.testing.assert_array_equal(found.times, np.arange(20, 0, -1))
    limit = slack * np.r_[bar[-1] * var, bar[-1] * var + np.cumsum(random)] / np.log(2)  # as if all erred alike
    assert (abs(found.rate - known) < limit + 1e-6).all()
    assert (np.diff(known) > 3 * limit[1:]).all()  # so that no row passes for the next one
    np.testing.assert_allclose(found.rmse, 127.5 * np.sqrt(error[:0:-1]), rtol=slack / 2)


@pytest.mark.parametrize(("sampling", "ten"), [({}, range(20, 0, -2)), ({"steps": 7, "spacing": "quadratic"}, None)])
def test_the_last_row_is_the_bound_without_the_decoder(run_folder, tmp_path, capsys, monkeypatch, sampling, ten):
    run = evaluation_context(run_folder, tmp_path, **sampling)._replace(model=ideal_model(run_folder, **sampling))
    likelihood.run(run, LikelihoodOptions(num=5))
    monkeypatch.setattr(likelihood, "measure", None)  # the number is there: it is not measured again
    rate_distortion.run(run, RateDistortionOptions(num=5))
    (path,) = tmp_path.glob("rate_distortion-*.csv")
    (measurements_file,) = tmp_path.glob("likelihood-*.json")
    measurements = {number.name: number for number in protocol.read_measurements(measurements_file)}
    total = measurements["bits/dim"].value - measurements["distortion, bits/dim"].value
    found = read_csv(path)
    assert found.rate[-1] == pytest.approx(total, rel=1e-6)
    assert found.rate[0] == pytest.approx(measurements["prior, bits/dim"].value, rel=1e-6)
    assert found.rmse[-1] == pytest.approx(measurements["RMSE of x_0, 0..255"].value, rel=1e-6)
    assert (np.diff(found.rate) >= 0).all()
    np.testing.assert_array_equal(found.times, run.model.times[:-1])
    rate, rmse = protocol.read_measurements(path.with_suffix(".json"))
    assert rate.value == pytest.approx(total, rel=1e-6) and rmse == measurements["RMSE of x_0, 0..255"]._replace(
        name=rmse.name
    )
    assert rate.protocol == measurements["bits/dim"].protocol
    table = path.with_suffix(".md").read_text().partition("\n\n")[0]
    assert table in capsys.readouterr().out
    shown = [int(row) for row in re.findall(r"^\| (\d+)", table, re.MULTILINE)]
    assert shown == (list(ten) if ten else (21 - found.times[::-1]).tolist())


def test_what_the_csv_holds_comes_back(run_folder, tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (4, 3)) * [[1e-6], [1], [1e2], [1e5]]
    values[1] = np.nan  # as errors are where there is one image
    files = figure.FigureFiles(evaluation_context(run_folder, tmp_path), "curve", {})
    columns = [np.array([9, 4, 1], np.int32), np.array([1, 6, 9]), values[3], values[2], values[0], values[1]]
    files.save_csv(rate_distortion.CSV_HEADER, zip(*columns, strict=True))
    back = read_csv(files.path.with_suffix(".csv"))
    np.testing.assert_array_equal(back.times, [9, 4, 1])
    np.testing.assert_allclose(back[1:], values, rtol=1e-6)
