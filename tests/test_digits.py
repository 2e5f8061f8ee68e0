"""A whole run on real data, shortened: does it learn to draw digits, all of them, and new ones?"""

import json
import re

import numpy as np
import pytest

from benchmarks import digits
from ddpm_jax import data

pytestmark = pytest.mark.slow


def test_a_short_run_draws_new_digits_of_all_kinds(tmp_path):
    """600 of the config's steps.  Noise, or a network that ignores the time, gets nowhere near these bounds."""
    from test_programs import run

    flags = ("--steps", 600, "--sample-every", 300, "--save-every", 600, "--sampling.num", 32)
    shown = run("train.py", "configs/digits.py", "--workdir", tmp_path / "run", *flags).stdout
    bits = [float(b) for b in re.findall(r"([\d.]+) ± [\d.]+ bits/dim", shown)]
    assert len(bits) == 2 and bits[1] < bits[0] and bits[1] < 3.3

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    quarters = [row["loss_by_quarter_of_t"] for row in rows if "loss" in row][-1]
    assert quarters == sorted(quarters, reverse=True)  # noise is easier to tell the more of it there is

    run("sample.py", tmp_path / "run", "--num", 128, "--out", tmp_path / "out", "--sampler", "ddim", "--steps", 100)
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        samples = stored["arr_0"]
    images = data.load("digits")
    ours, theirs = digits.judge(images, samples), digits.judge(images, images.test)
    assert theirs.sure > 0.85
    assert ours.sure > 0.5  # uniform noise: 0.27; each pixel drawn from those of the images: 0.28
    assert (ours.counts > 0).all()
    # no sample is a copy: the nearest training image is as far away as it is from held-out images
    assert ours.distances.min() > 0.5 * theirs.distances.min()
    assert np.median(ours.distances) > 0.9 * np.median(theirs.distances)
