"""Post-hoc EMA of a run: snapshots that a kill does not change, averages of other lengths, and what is out of reach."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
import run_programs
from run_programs import TINY, run

from ddpm_jax import checkpoint, pipeline, posthoc_ema, trainer
from ddpm_jax.checkpoint import snapshots
from ddpm_jax.pipeline import averages

STEPS = 40
FLAGS = ("--steps", STEPS, "--save-every", 10, "--snapshot-every", 1, "--optim.ema-lengths", 0.05, 0.1, "--devices", 2)


def train(home, workdir):
    return run("train.py", home / "tiny.py", "--workdir", workdir, *FLAGS, preview=False)


def model(workdir, weights, step=None):
    return pipeline.Pipeline(workdir, step=step, weights=weights, sampling={})


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(params))]).astype(np.float64)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages")
    (folder / "tiny.py").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def straight(home):
    """A run on two devices with a snapshot of both averages after each step, and the parameters after each step."""
    path, save = [], trainer.Run.save_snapshot

    def recorded(self, step, state):
        path.append(flat(state.params))
        save(self, step, state)

    with mock.patch.object(trainer.Run, "save_snapshot", recorded):
        train(home, home / "straight")
    return home / "straight", np.stack(path)


@pytest.fixture(scope="module")
def path(straight):
    return straight[1]


@pytest.fixture(scope="module")
def trained(home, straight):
    """The run with the snapshots of every other step alone, and none of step 30, which has a checkpoint."""
    workdir = shutil.copytree(straight[0], home / "run")
    for step in (30, *range(1, STEPS, 2)):
        (workdir / "snapshots" / f"{step}.npz").unlink()
    return workdir


def direct(path, length, t):
    """The average after t steps, computed from the parameters themselves."""
    ends = np.minimum(np.arange(len(path) + 1) / t, 1) ** (posthoc_ema.gamma_of_length(length) + 1)
    return np.diff(ends) @ path


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_snapshots_and_checkpoints_hold_the_averages_of_the_parameters(straight, trained, path):
    assert snapshots.steps(straight[0] / "snapshots") == list(range(1, STEPS + 1))
    for step in (30, STEPS):
        found = model(trained, "ema:0.05", step)
        np.testing.assert_allclose(flat(found.params), direct(path, 0.05, step), atol=1e-6)
        assert (found.step, found.weights) == (step, "ema:0.05")
    averages_kept = snapshots.load(straight[0] / "snapshots", 27, (found.params,) * 2)
    np.testing.assert_allclose(flat(averages_kept[1]), direct(path, 0.1, 27), atol=1e-6)


def test_averages_that_were_not_kept_are_had_to_one_percent(trained, path):
    """Of their distance from the last parameters; of their own size it is much less."""
    base = model(trained, "raw")
    for step in (30, STEPS):
        with checkpoint.Checkpoints(trained / "checkpoints", read_only=True) as saved:
            available = averages.KeptAverages(trained, saved, base.model, step)
        for length in (0.04, 0.07, 0.14, 0.2):
            made, expected = flat(available.reconstruct(length)), direct(path, length, step)
            assert np.linalg.norm(made - expected) < 0.01 * np.linalg.norm(expected - path[step - 1]), (step, length)


@pytest.mark.slow  # the quick kill test kills such a run, too
def test_a_run_that_was_killed_and_continued_has_the_same_snapshots(home, straight):
    """Killed when its newest checkpoint was 20: newer snapshots are not of the continued run's past."""
    workdir = shutil.copytree(straight[0], home / "killed")
    for step in (30, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    (workdir / "snapshots" / "41.npz").write_bytes(b"of steps that were to be more")
    (workdir / "snapshots" / "28.npz.part").write_bytes(b"half")
    assert "continued from step 20" in train(home, workdir).stdout
    assert files(workdir / "snapshots") == files(straight[0] / "snapshots")
    run_programs.assert_same_bytes(run_programs.load_state(workdir).tree, run_programs.load_state(straight[0]).tree)


@pytest.mark.slow
def test_images_of_an_average_have_its_name_and_can_be_drawn_again(home, trained):
    call = ("sample.py", trained, "--num", 4, "--devices", 2)
    shown = run(*call, "--weights", "ema:.070", "--out", home / "seven")
    assert "step 40, ema:0.07 weights" in shown.stdout
    manifest = json.loads((home / "seven" / "manifest.json").read_text())
    assert manifest["weights"] == "ema:0.07"
    assert manifest["fingerprint"] == checkpoint.fingerprint(model(trained, "ema:0.07").params)
    verify = ("sample.py", trained, "--verify", home / "seven" / "manifest.json", "--devices", 2)
    assert "equal: all 4 images" in run(*verify).stdout


@pytest.mark.slow
def test_an_average_is_converted_as_other_weights_are(home, trained):
    run("-m", "ddpm_jax", "convert", "to", "plain", trained, home / "plain", "--weights", "ema:0.07")
    made = json.loads((home / "plain" / "model.json").read_text())
    assert (made["weights"], made["step"]) == ("ema:0.07", STEPS)
    run("-m", "ddpm_jax", "convert", "from", "plain", home / "plain", "--workdir", home / "back")
    assert model(home / "back", "ema").fingerprint == model(trained, "ema:0.07").fingerprint
    shown = run("sample.py", home / "back", "--weights", "ema:0.07", status=2).stderr
    assert "has no averages at step 40 yet" in shown


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("ema:0.004", r"step 40: 'ema:0\.004' is out of reach of 18 snapshots of the averages 0\.05 and 0\.1: .* "
                      r"at most 10% is accepted; the nearest that can be had is 'ema:0\.0[12]\d*'\. Training with"),
        ("ema:0.288", r"out of reach .* the nearest that can be had is 'ema:0\.2"),
        ("ema:0.3", r"relative length in \(0, 0\.2886\], as 'ema:0\.05', got 'ema:0\.3'"),
        ("ema:", "got 'ema:'"), ("0.05", "got '0.05'"), ("ema:nan", "got 'ema:nan'"),
    ],
)  # fmt: skip
def test_what_is_no_length_or_out_of_reach_is_refused_with_what_is_right(trained, weights, text):
    with pytest.raises(ValueError, match=text) as error:
        model(trained, weights)
    nearest = str(error.value).partition("can be had is '")[2].partition("'")[0]
    assert not nearest or model(trained, nearest).weights == nearest


def test_a_run_without_averages_says_what_keeps_them(run_folder):
    with pytest.raises(
        ValueError, match=r"kept no averages .* trained without --optim\.ema-lengths, such as 0\.05 0\.1"
    ):
        model(run_folder, "ema:0.05")


def test_with_weights_is_another_network_with_the_same_programs(trained):
    ema = model(trained, "ema")
    other = ema.with_weights("ema:0.05")
    assert other.fingerprint == model(trained, "ema:0.05").fingerprint != ema.fingerprint
    assert other._programs is ema._programs and other.with_weights("ema").fingerprint == ema.fingerprint


def test_a_snapshot_that_is_damaged_is_named(home, trained):
    folder = shutil.copytree(trained / "snapshots", home / "damaged")
    file, averages = folder / "32.npz", (model(trained, "raw").params,) * 2
    whole = file.read_bytes()
    with np.load(file) as archive:
        arrays = dict(archive)
    leaf = next(name for name in arrays if name != "record")
    np.savez(file, **(arrays | {leaf: arrays[leaf] + 1}))
    with pytest.raises(checkpoint.CheckpointError, match=r"32\.npz cannot be read: the fingerprint differs; without"):
        snapshots.load(folder, 32, averages)
    record = str(arrays["record"]).replace('"count": 32', '"count": 3')
    np.savez(file, **(arrays | {"record": np.array(record)}))
    with pytest.raises(
        checkpoint.CheckpointError, match=r"32\.npz cannot be read: .*its record is not what was written"
    ):
        snapshots.meta(folder, 32)
    file.write_bytes(whole[:-100])
    with pytest.raises(checkpoint.CheckpointError, match=r"32\.npz cannot be read"):
        snapshots.meta(folder, 32)
    file.write_bytes(whole)
    assert snapshots.meta(folder, 32) == {"step": 32, "count": 32}
    with pytest.raises(ValueError, match="does not fit the configuration"):
        snapshots.load(folder, 32, averages[:1])
