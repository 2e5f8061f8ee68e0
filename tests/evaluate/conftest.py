"""Fixtures of the evaluation's tests: shared compiled programs, samples drawn once, and a run of few digits."""

import dataclasses

import numpy as np
import pytest
import shared_evaluation
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import data
from ddpm_jax.evaluate import sample_cache


@pytest.fixture(scope="module", autouse=True)
def share_programs():
    with shared_evaluation.share_programs():
        yield


@pytest.fixture(scope="session")
def drawn(run_folder, tmp_path_factory):
    """A context of four steps of DDIM whose cache holds 132 samples of seed 3."""
    with shared_evaluation.share_programs():
        context = shared_evaluation.ddim_context(run_folder, tmp_path_factory.mktemp("drawn"))
        sample_cache.ensure_samples(context, 132, 3, "integer")
    return context


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A run of fewer digits, 400 and 70, and a folder for results: whole commands take seconds."""
    home, digits = tmp_path_factory.mktemp("small"), data.load("digits")
    np.savez(home / "few.npz", train=digits.train[:400], test=digits.test[:70])
    config = dataclasses.replace(tiny_run.CONFIG, data=configs.Data(f"npz:{home / 'few.npz'}", levels=17))
    return tiny_run.make_run(home / "run", config), home / "results"
