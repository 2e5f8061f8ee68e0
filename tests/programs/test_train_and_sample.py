"""The two programs as a person runs them: whole runs, in processes of their own where they are killed or stopped."""

import hashlib
import json
import logging
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from run_programs import (
    OPTIMISED,
    TINY,
    TRAIN_WITHOUT_PREVIEWS,
    assert_same_bytes,
    load_state,
    logged_losses,
    run,
    run_process,
    saved_steps,
    start_process,
    wait_for,
)

from ddpm_jax import checkpoint, data, process, tracking, trainer
from ddpm_jax import config as configs
from ddpm_jax.keys import from_seed
from ddpm_jax.pipeline import image_parts
from ddpm_jax.programs import train

SIXTY = TINY.replace("steps=3", "steps=60").replace("log_every=1", "log_every=10")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "tiny.py").write_text(SIXTY)
    return folder


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def straight(home):
    """Sixty steps without interruption, on one device: the folder, what was shown, and what JAX logged.

    And the lines of progress with their times, which come after half a second here.
    """
    heard, progress = Messages(), []
    logging.getLogger("jax").addHandler(heard)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        seconds = {"_LINE_SECONDS": 0.01, "_WAIT_SECONDS": 0.5, "_REFRESH_SECONDS": 0.1, "_STAGE_SECONDS": 0.0}
        for name, value in seconds.items():
            patch.setattr(tracking, name, value)
        patch.setattr(tracking, "print", lambda line, **_: progress.append((time.monotonic(), line)), raising=False)
        shown = run("train.py", home / "tiny.py", "--workdir", home / "straight").stdout
    logging.getLogger("jax").removeHandler(heard)
    return home / "straight", shown, heard.lines, progress


def copied(straight, workdir, last=60):
    """The straight run as it was when step `last` had just been saved."""
    shutil.copytree(straight[0], workdir)
    for step in saved_steps(workdir):
        if step > last:
            shutil.rmtree(workdir / "checkpoints" / str(step))
    return workdir


def test_a_run_says_what_it_is_and_leaves_what_it_says(straight):
    workdir, shown, *_ = straight
    for message in ("run ", "devices   1 x", "parameters", "1,500 training and 297 held-out", "bits/dim", "60"):
        assert message in shown, message
    assert configs.from_dict(json.loads((workdir / "config.json").read_text())).steps == 60
    assert saved_steps(workdir) == [10, 20, 30, 40, 50, 60]
    assert (workdir / "samples" / "60.png").exists()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40, 50, 60]
    assert losses[-1] < losses[0]
    assert len(rows[0]["loss_by_quarter_of_t"]) == 4
    assert np.isfinite(rows[-1]["held_out_bits_per_dim"]) and rows[-1]["held_out_bits_per_dim_se"] > 0

    # eight samples of a network that has learnt nothing: too few for a verdict on colours, and no copies
    for message in (
        "loss by t  ",
        "samples   mean ",
        "colours not judged: only 8 samples",
        "neighbours  nearest training",
    ):
        assert message in shown, message
    assert rows[-1]["copying"] in ("new", "unknown")
    assert len(rows[-1]["sample_mean"]) == 1 and rows[-1]["channels_off"] == []
    tenths = [x for x in rows[-1]["held_out_loss_by_tenth_of_t"] if x is not None]
    assert len(tenths) >= 8 and min(tenths) > 0


def test_the_log_witnesses_which_images_were_seen(straight):
    order = data.EpochShuffle(trainer.run_keys(0)[2], 1500)
    rows = [json.loads(line) for line in (straight[0] / "metrics.jsonl").read_text().splitlines()]
    batches = [np.concatenate([order.indices(n, 16) for n in range(start, start + 10)]) for start in range(0, 60, 10)]
    expected = [hashlib.sha256(batch.astype("<i4").tobytes()).hexdigest()[:16] for batch in batches]
    assert [row["seen"] for row in rows if "seen" in row] == expected and len(set(expected)) == 6


def test_the_step_is_compiled_once(straight):
    """What JAX logs of a run of sixty steps: of what is pmapped, the step and the sampler's two programs, once each."""
    pmapped = [line for line in straight[2] if "Compiling" in line and "Mesh('" in line]
    assert sum("Mesh('batch'" in line and "int32[1,1,16]" in line for line in pmapped) == 1, pmapped
    assert sum("Mesh('tiles'" in line for line in pmapped) == 2, pmapped


def test_no_part_of_a_run_is_silent(straight):
    """Compilation, steps and evaluations are shown, the steps also between the lines of metrics.jsonl."""
    times, lines = zip(*straight[3], strict=True)
    ended = [line.partition(" took ")[0] for line in lines if " took " in line]
    assert ended[:5] == [
        "drawing the first parameters", "compiling the training step", "compiling the sampler",
        "compiling the held-out evaluation", "evaluating step 60",
    ]  # fmt: skip
    steps = [int(line.partition(" of 60 steps")[0]) for line in lines if " of 60 steps" in line]
    assert steps == sorted(steps) and steps[-1] == 60 and any(step % 10 for step in steps)
    assert np.diff(times).max() < 10


@pytest.mark.parametrize("env", [{}, pytest.param(OPTIMISED, marks=pytest.mark.slow)], ids=["quick", "optimised"])
def test_killed_and_resumed_is_straight_to_the_last_bit(home, tmp_path, env):
    """In processes of their own: one of eight devices has more threads, which may sum in another order."""
    workdir = tmp_path / "killed"
    args = (*TRAIN_WITHOUT_PREVIEWS, home / "tiny.py", "--devices", 1, "--workdir")
    run_process(*args, tmp_path / "undisturbed", env=env)
    process = start_process(*args, workdir, env=env)
    wait_for(lambda: (workdir / "checkpoints" / "30").exists(), process)
    process.kill()
    process.communicate()
    assert not (workdir / "checkpoints" / "60").exists()
    shown = run_process(*args, workdir, env=env).stdout
    resumed = re.search(r"continued from step (\d+)", shown)
    assert resumed and 30 <= int(resumed[1]) < 60
    a, b = load_state(tmp_path / "undisturbed"), load_state(workdir)
    assert a.step == b.step == 60
    assert_same_bytes(a.tree, b.tree)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and len([s for s in steps if s == 40]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("change", [("--data.stream", "True"), ("--parallel", "shard_map")])
def test_a_run_may_stream_its_images_or_use_shard_map_from_any_step_on(home, straight, change):
    """Half of the run with all images on the device and by pmap, half otherwise: parameters are those of the whole."""
    workdir = copied(straight, home / f"changed{change[0]}", 30)
    shown = run("train.py", home / "tiny.py", "--workdir", workdir, *change, preview=False).stdout
    assert "continued from step 30" in shown
    assert_same_bytes(load_state(workdir).tree, load_state(straight[0]).tree)


@pytest.mark.slow
def test_shard_map_takes_the_steps_of_pmap_to_the_bit(home):
    """Sixty on eight devices, of images read ahead, two at a call; half by the one and half by the other, too."""
    flags = ("--devices", 8, "--data.stream", "True", "--steps-per-call", 2, "--workdir")
    for parallel in ("pmap", "shard_map"):
        run("train.py", home / "tiny.py", "--parallel", parallel, *flags, home / parallel, preview=False)
    both = copied((home / "shard_map",), home / "both", 30)
    run("train.py", home / "tiny.py", *flags, both, preview=False)
    for other in (home / "shard_map", both):
        assert_same_bytes(load_state(other).tree, load_state(home / "pmap").tree)


def test_samples_that_a_kill_prevented_are_drawn_when_the_run_is_continued(home, straight):
    """Killed after its last save, and before what follows it was done."""
    workdir = copied(straight, home / "unseen")
    whole = (straight[0] / "metrics.jsonl").read_bytes()
    (workdir / "metrics.jsonl").write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    (workdir / "samples" / "60.png").unlink()
    shown = run("train.py", home / "tiny.py", "--workdir", workdir).stdout
    assert "step 60: held-out loss" in shown and "the run is complete: 60 steps" in shown
    for name in ("metrics.jsonl", "samples/60.png"):
        assert (workdir / name).read_bytes() == (straight[0] / name).read_bytes()
    shown = run("train.py", home / "tiny.py", "--workdir", workdir).stdout
    assert "held-out loss" not in shown and "the run is complete" in shown


def test_the_next_batch_of_a_resumed_run_is_the_straight_one():
    key = from_seed(7)
    straight = [data.EpochShuffle(key, 1500).indices(n, 128) for n in range(40)]
    resumed = data.EpochShuffle(key, 1500)
    np.testing.assert_array_equal(resumed.indices(31, 128), straight[31])


def test_eight_devices_may_be_followed_by_one_and_streamed_images_by_resident_ones(home, straight):
    """And shard_map by pmap.  The batches are the same, and so, to rounding, is the result."""
    workdir = home / "eight"
    flags = ("train.py", home / "tiny.py", "--workdir", workdir)
    run(*flags, "--devices", 8, "--steps", 20, "--data.stream", "True", "--parallel", "shard_map", preview=False)
    run(*flags, "--steps", 40, preview=False)
    np.testing.assert_allclose(logged_losses(workdir), logged_losses(straight[0])[:4], atol=1e-5)


@pytest.mark.slow
def test_several_steps_at_a_call_are_the_steps_that_they_are_one_by_one(home, straight):
    """To rounding, as the compiler may put them together otherwise; and where a run was interrupted does not count."""
    pairs = ("train.py", home / "tiny.py", "--steps-per-call", 2, "--workdir")
    run(*pairs, home / "pairs", preview=False)
    parted = copied((home / "pairs",), home / "parted", 30)
    run(*pairs, parted, preview=False)
    assert_same_bytes(load_state(parted).tree, load_state(home / "pairs").tree)
    one, two = (
        [row for row in tracking.read_metrics(w / "metrics.jsonl") if "seen" in row]
        for w in (straight[0], home / "pairs")
    )
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"] and a["seen"] == b["seen"]
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, err_msg=name)


def test_sigterm_finishes_the_step_saves_and_exits_with_0(home):
    workdir = home / "stopped"
    flags = ("--devices", 1, "--steps", 100_000, "--save-every", 100_000)
    process = start_process("train.py", home / "tiny.py", "--workdir", workdir, *flags)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    (step,) = saved_steps(workdir)
    assert f"saved step {step}" in shown


def test_a_run_says_that_it_has_saved_when_it_has_and_no_signal_ends_it_before(home, monkeypatch):
    workdir, add, close, message = home / "told", trainer.StepMetrics.add, checkpoint.Checkpoints.close, []

    def stopped(self, step, *rest):
        signal.raise_signal(signal.SIGTERM)
        add(self, step, *rest)

    def closed(self):
        message.append(getattr(signal.getsignal(signal.SIGTERM), "__self__", None))
        close(self)

    monkeypatch.setattr(trainer.StepMetrics, "add", stopped)
    monkeypatch.setattr(checkpoint.Checkpoints, "close", closed)
    monkeypatch.setattr(
        train, "print", lambda *words, **_: message.append((*words, saved_steps(workdir))), raising=False
    )
    run("train.py", home / "tiny.py", "--workdir", workdir, preview=False)
    interrupted, handler = message[-2:]
    assert interrupted == ("interrupted: saved step 1; the same command continues", [1])
    assert isinstance(handler, process.Interrupt)


@pytest.mark.parametrize("save_every", [1, 10])
def test_a_signal_during_an_evaluation_saves_its_step_once(home, tmp_path, monkeypatch, save_every):
    """Whether or not this host lists the step already: processes that share a folder must agree."""
    monkeypatch.setattr(trainer.Run, "sample_and_evaluate", lambda *_: signal.raise_signal(signal.SIGTERM) or {})
    monkeypatch.setattr(checkpoint.Checkpoints, "latest", lambda self: None)
    flags = ("--sample-every", 1, "--save-every", save_every)
    shown = run("train.py", home / "tiny.py", "--workdir", tmp_path / "run", *flags)
    assert "interrupted: saved step 1;" in shown.stdout and saved_steps(tmp_path / "run") == [1]


def test_a_closed_terminal_does_not_keep_a_run_from_saving(home, hangup):
    """Nobody reads what it prints any more, then the signal comes."""
    workdir = home / "hung"
    flags = ("--devices", 1, "--steps", 100_000, "--save-every", 100_000)
    process = start_process("train.py", home / "tiny.py", "--workdir", workdir, *flags)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert len(saved_steps(workdir)) == 1


def test_another_config_in_an_old_run_is_an_error(home, straight):
    shown = run("train.py", home / "tiny.py", "--workdir", straight[0], "--optim.learning-rate", 1, status=2)
    assert "holds a run of another config" in shown.stderr
    assert "optim.learning_rate: 0.003 -> 1.0" in shown.stderr


def test_a_folder_that_is_no_run_is_left_alone(home):
    (home / "thesis").mkdir()
    (home / "thesis" / "chapter1.tex").write_text("precious")
    shown = run("train.py", home / "tiny.py", "--workdir", home / "thesis", status=2)
    assert "is not empty and has no config.json" in shown.stderr
    assert [p.name for p in (home / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_batch_that_does_not_divide_is_refused(home):
    shown = run("train.py", home / "tiny.py", "--workdir", home / "odd", "--devices", 3, status=2)
    assert "batch must be divisible by the number of devices, got 16 over 3" in shown.stderr


def taken_again(workdir, state, images):
    """The metrics of the step after `state`, on these images: what a record is kept for."""
    from ddpm_jax.guidance import Condition
    from ddpm_jax.model import build

    config = configs.from_dict(json.loads((workdir / "config.json").read_text()))
    model = build(config, (8, 8, 1), 17)
    body = trainer.train_step(model, trainer.example_losses(model))
    step = trainer.parallelise(body, None, jax.devices()[:1])
    places = np.arange(len(images))[None, None]
    metrics = step(trainer.run_keys(config.seed)[1], state, np.int32(0), images, places, Condition(), None)[2]
    return jax.tree.map(lambda leaf: leaf[0], metrics)


BURNT = ("--optim.learning-rate", 1e30, "--optim.warmup", 1, "--optim.max-skipped", 4, "--save-every", 1)
"""A rate of 1e30 makes the parameters, and then every loss, overflow."""


@pytest.fixture(scope="module")
def burnt(home):
    workdir = home / "burnt"
    shown = run("train.py", home / "tiny.py", "--workdir", workdir, *BURNT, status=3)
    (record,) = workdir.glob("nonfinite-step-*.npz")
    return workdir, shown, record


def test_steps_that_are_not_finite_stop_the_run(burnt):
    workdir, shown, record = burnt
    step = int(re.search(r"\d+", record.stem)[0])
    assert f"4 steps in a row, the first being step {step}" in shown.stderr
    assert f"ddpm-jax replay {record}" in shown.stderr
    with np.load(record) as dump:
        assert dump["step"] == step and dump["indices"].shape == (16,) and dump["images"].shape == (16, 8, 8, 1)
        indices, images = dump["indices"], dump["images"]
        # the parameters are those that the last good step left behind
        good = load_state(workdir, step - 1).tree
        for where, leaf in jax.tree_util.tree_flatten_with_path(good.params)[0]:
            np.testing.assert_array_equal(dump["params" + jax.tree_util.keystr(where)], leaf)
    assert taken_again(workdir, good, images)["skipped"] == 1
    np.testing.assert_array_equal(images, data.load("digits").train[indices])


def test_the_step_that_was_not_finite_is_taken_again_layer_by_layer(burnt):
    workdir, _, record = burnt
    message = run("-m", "ddpm_jax", "replay", record, status=1)
    assert re.search(rf"step \d+ of {workdir}: 16 images, largest parameter", message.stdout)
    assert "in float32: loss nan" in message.stdout and "forward, the first output that is not finite" in message.stdout


@pytest.mark.slow
def test_after_too_many_bad_steps_a_call_takes_no_more(home, burnt):
    """The last of four bad steps is in the middle of a call, and the parameters are those before the first."""
    workdir = home / "burnt-2"
    run("train.py", home / "tiny.py", "--workdir", workdir, *BURNT, "--steps-per-call", 2, "--save-every", 2, status=3)
    (record,) = workdir.glob("nonfinite-step-*.npz")
    assert record.name == burnt[2].name
    with np.load(record) as two, np.load(burnt[2]) as one:
        assert set(one) == set(two)
        for name in one:
            if not name.endswith("['k']['bias']"):  # whose gradient is zero but for rounding: Adam makes steps of it
                scale = np.abs(one[name].astype(np.float64)).max()
                np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("by", ["pmap", "shard_map"])
def test_bad_steps_in_a_row_are_counted_on_the_devices(by):
    """A good one begins the count anew."""
    device = jax.devices()[:1]

    def step(key, state, bad, pixels, places, rows):
        return state + 1, {"skipped": places[0], "before": bad}

    steps = trainer.parallelise(step, None, device, by=by)
    skipped = np.array([1, 1, 0, 1, 1, 1], np.int32).reshape(1, 6, 1)
    state, bad, metrics = steps(from_seed(0), np.int32(0), np.int32(2), np.zeros(1), skipped, np.zeros((1, 6)), None)
    assert state == 6 and bad == 3
    np.testing.assert_array_equal(metrics["before"], [2, 3, 4, 0, 1, 2])


# --- sampling


def draw(workdir, out, *flags, num=16):
    run("sample.py", workdir, "--num", num, "--seed", 5, "--out", out, *flags)
    with np.load(out / "samples.npz") as stored:
        return stored["arr_0"]


@pytest.fixture(scope="module")
def sixteen(home, straight):
    return draw(straight[0], home / "sixteen", "--trajectory"), home / "sixteen"


def test_sampling_needs_no_flags_and_leaves_a_manifest(sixteen):
    images, out = sixteen
    assert images.shape == (16, 8, 8, 1) and images.dtype == np.uint8 and images.max() <= 16
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["num"] == 16 and len(set(manifest["sha256"])) == 16
    assert manifest["times"][0] == 20 and manifest["times"][-1] == 0
    for name in ("grid.png", "trajectory.gif", "trajectory.png"):
        assert (out / name).stat().st_size > 500


@pytest.mark.parametrize(("start", "num", "batch"), [(3, 6, 1), (15, 1, 16)])
def test_image_i_is_image_i_however_many_are_in_flight(home, straight, sixteen, start, num, batch):
    part = draw(straight[0], home / f"from{start}", "--start", start, "--batch", batch, num=num)
    np.testing.assert_array_equal(part, sixteen[0][start : start + num])


@pytest.mark.slow
def test_image_i_is_image_i_as_users_compile_it(straight, tmp_path):
    def drawn(name, *flags):
        run_process(
            "sample.py", straight[0], "--seed", 5, "--devices", 1, "--out", tmp_path / name, *flags, env=OPTIMISED
        )
        with np.load(tmp_path / name / "samples.npz") as stored:
            return stored["arr_0"]

    whole, part = drawn("whole", "--num", 9), drawn("part", "--num", 3, "--start", 5, "--batch", 1)
    np.testing.assert_array_equal(part, whole[5:8])


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_on_other_devices_the_images_agree_to_rounding(home, straight, sixteen, devices):
    other = draw(straight[0], home / f"on{devices}", "--devices", devices)
    off = np.abs(other.astype(int) - sixteen[0].astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_verify_says_equal_and_notices_another_image(straight, sixteen, tmp_path):
    shown = run("sample.py", straight[0], "--verify", sixteen[1] / "manifest.json")
    assert "equal: all 16 images" in shown.stdout
    manifest = json.loads((sixteen[1] / "manifest.json").read_text())
    manifest["seed"] = 6
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    np.savez(tmp_path / "samples.npz", arr_0=sixteen[0])
    shown = run("sample.py", straight[0], "--verify", tmp_path / "manifest.json", status=1)
    assert "16 of 16 images differ" in shown.stdout and "different" in shown.stdout


def test_verify_looks_at_the_file_beside_the_manifest(run_folder, tmp_path):
    run("sample.py", run_folder, "--num", 4, "--out", tmp_path / "drawn", "--format", "npz")
    file, manifest = tmp_path / "drawn" / "samples.npz", tmp_path / "drawn" / "manifest.json"
    with np.load(file) as stored:
        flipped = stored["arr_0"].copy()
    flipped[3, 2, 1] ^= 1
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[:-30]), lambda: np.savez(file, arr_0=flipped), file.unlink):
        damage()
        shown = run("sample.py", run_folder, "--verify", manifest, status=1).stdout
        assert f"all 4 images equal those of the manifest, but not those in {file}: " in shown
        assert "equal: all" not in shown


def test_an_interrupted_call_keeps_its_images_and_goes_on_where_it_was(run_folder, tmp_path, monkeypatch):
    def drawn(out, *flags, status=0):
        return run("sample.py", run_folder, "--num", 16, "--out", tmp_path / out, *flags, status=status)

    def stored_parts(out):
        return [path.name for path in sorted((tmp_path / out / "samples.parts").glob("*.npy"))]

    def stopping(folder, *part):
        store(folder, *part)
        signal.raise_signal(signal.SIGTERM)

    drawn("whole")
    store = image_parts.write_part
    monkeypatch.setattr(image_parts, "PART_SIZE", 4)
    monkeypatch.setattr(image_parts, "write_part", stopping)
    for out in ("same", "other"):
        assert "interrupted: 8 of 16 images are kept; the same command continues" in drawn(out, status=4).stdout
        assert stored_parts(out) == ["00000000-00000004.npy", "00000004-00000008.npy"]
        assert not (tmp_path / out / "manifest.json").exists()
    monkeypatch.setattr(image_parts, "write_part", store)
    shown = drawn("same")
    assert "12 of 16 images" in shown.stderr and "4 of 16 images" not in shown.stderr.splitlines()[0]
    drawn("other", "--seed", 1)
    for name in ("samples.npz", "manifest.json", "grid.png"):
        whole, same, other = ((tmp_path / out / name).read_bytes() for out in ("whole", "same", "other"))
        assert whole == same != other
    assert sorted(path.name for path in (tmp_path / "same").iterdir()) == ["grid.png", "manifest.json", "samples.npz"]


def test_raw_weights_and_other_samplers_make_other_images(home, straight, sixteen):
    ddim = draw(straight[0], home / "ddim", "--sampler", "ddim", "--steps", 5)
    raw = draw(straight[0], home / "raw", "--sampler", "ddim", "--steps", 5, "--weights", "raw")
    first_order = draw(straight[0], home / "first", "--sampler", "dpm_solver_pp", "--order", 1, "--steps", 5)
    assert np.abs(first_order.astype(int) - ddim).max() <= 1
    assert (ddim != sixteen[0]).any() and (ddim != raw).any()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--checkpoint", 55), "55"),
        (("--start", -1), "start must be at least 0"),
        (("--steps", 21), r"steps must be an integer in 1..T = 20, got 21"),
        (("--variance-mix", 3.0), r"must lie in [0, 1], got 3.0"),
        (("--verify", "m.json", "--batch", 2, "--steps", 5), "--verify draws what m.json records: leave out all other"),
    ],
)
def test_wrong_requests_are_refused(run_folder, flags, text):
    shown = run("sample.py", run_folder, *flags, status=2)
    assert text in shown.stderr


def test_sampling_where_there_is_no_run(home):
    assert "holds no checkpoints: it is not the folder of a run" in run("sample.py", home, status=2).stderr


def test_a_broken_newest_checkpoint_falls_back_with_a_warning(home, straight):
    workdir = copied(straight, home / "broken")
    files = [path for path in (workdir / "checkpoints" / "60").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    # in a process of its own: what orbax was reading goes with it
    shown = run_process(*TRAIN_WITHOUT_PREVIEWS, home / "tiny.py", "--workdir", workdir, "--devices", 1)
    assert "continued from step 50" in shown.stdout
    assert "60" in shown.stderr and "Warning" in shown.stderr
    assert saved_steps(workdir)[-1] == load_state(workdir).step == 60
    np.testing.assert_allclose(logged_losses(workdir), logged_losses(straight[0]), atol=1e-5)
