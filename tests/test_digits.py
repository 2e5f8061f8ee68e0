"""A whole run on real data, shortened: does it learn to draw digits, all of them, and new ones?"""

import functools
import json
import re

import pytest

from ddpm_jax.evaluate import protocol

pytestmark = pytest.mark.slow


def test_a_short_run_draws_new_digits_of_all_kinds(tmp_path):
    """600 of the config's steps.  Noise, or a network that ignores the time, gets nowhere near these bounds."""
    from test_programs import run as program

    run = functools.partial(program, env={"XLA_FLAGS": ""})  # as a user runs them: it is no short run
    flags = ("--steps", 600, "--sample-every", 300, "--save-every", 600, "--sampling.num", 32)
    shown = run("train.py", "configs/digits.py", "--workdir", tmp_path / "run", *flags).stdout
    bits = [float(b) for b in re.findall(r"([\d.]+) ± [\d.]+ bits/dim", shown)]
    assert len(bits) == 2 and bits[1] < bits[0] and bits[1] < 3.3

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    quarters = [row["loss_by_quarter_of_t"] for row in rows if "loss" in row][-1]
    assert quarters == sorted(quarters, reverse=True)  # noise is easier to tell the more of it there is
    assert rows[-1]["copying"] == "new" and rows[-1]["channels_off"] == []

    way = ("--sampler", "ddim", "--steps", 100)
    run("-m", "ddpm_jax.evaluate", tmp_path / "run", "samples", "--num", 128, *way)
    (path,) = (tmp_path / "run" / "evaluation").glob("samples-*.json")
    found = {number.name: number.value for number in protocol.read(path)}
    # an untrained network: a distance of 180, a precision of 0.01 and a share of 0.25
    assert found["Fréchet distance"] < 40
    assert found["precision, k=3"] > 0.4 and found["share with p > 0.9"] > 0.6
    assert found["classes present, of 10"] == 10

    run("-m", "ddpm_jax.evaluate", tmp_path / "run", "neighbours", "--num", 128, *way)
    (path,) = (tmp_path / "run" / "evaluation").glob("neighbours-*.json")
    assert json.loads(path.read_text())["verdict"] == "new"
