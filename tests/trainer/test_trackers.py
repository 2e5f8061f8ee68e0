"""TensorBoard and W&B have each line of metrics.jsonl once, whatever happened to the run, and traces their steps."""

import dataclasses
import gzip
import json
import sys
import types

import event_files
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from run_programs import TINY, TRAIN_WITHOUT_PREVIEWS, run, run_process, start_process, wait_for

from ddpm_jax import config as configs
from ddpm_jax import data, process, tracking, trainer
from ddpm_jax.trainer import trackers

CONFIG = dataclasses.replace(tiny_run.CONFIG, steps=60, sample_every=20)
TENTHS = [1.0, 0.5, None, *[0.25] * 7]
PICTURE = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)


def training_row(step):
    """A line as `StepMetrics.write_metrics` makes it; its numbers are exact in float32."""
    quarters = [0.5, None, 0.25, 0.125]
    return {
        "step": step,
        "loss": step / 64,
        "loss_by_quarter_of_t": quarters,
        "skipped": 0,
        "steps_per_s": 5.0,
        "seen": "ab",
    }


def evaluation_row(step):
    """A line as `Run.sample_and_evaluate` makes it."""
    colours = {"sample_mean": [0.5, 0.25], "channels_off": [1], "copying": "new", "copied_share": None}
    return {"step": step, "held_out_loss": step / 128, "held_out_loss_by_tenth_of_t": TENTHS, **colours}


def take_steps(metrics, workdir, *steps):
    for step in steps:
        metrics.file.write(training_row(step))
        if step % CONFIG.sample_every == 0:
            (workdir / "samples").mkdir(exist_ok=True)
            data.write_png(workdir / "samples" / f"{step}.png", PICTURE)
            metrics.file.write(evaluation_row(step))


def curve(workdir, tag="training/loss"):
    return [(step, value) for name, step, value in event_files.scalars(workdir) if name == tag]


@pytest.fixture
def server(monkeypatch):
    """What stands for the package and for a run at W&B's server: no server can be reached here."""
    requests = types.SimpleNamespace(starting_step=0, lines={}, inits=[], exit_codes=[], mode="online", error=None)

    class Run:
        id, starting_step = "abc", property(lambda _: requests.starting_step)

        def log(self, values, step, commit):
            assert commit and step >= requests.starting_step, "W&B takes a step only once"
            requests.lines[step], requests.starting_step = values, step + 1

        def finish(self, exit_code):
            requests.exit_codes.append(exit_code)

    def init(**options):
        requests.inits.append(options)
        if requests.error:
            raise requests.error
        return Run()

    settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online", project=None))
    module = types.SimpleNamespace(
        init=init, Error=RuntimeError, Image=str, Histogram=lambda np_histogram: np_histogram, setup=lambda: settings
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return requests


def test_tensorboard_has_the_numbers_grids_histograms_and_config_of_a_run(tmp_path):
    with trainer.track(["tensorboard"], CONFIG, tmp_path, 0) as metrics:
        take_steps(metrics, tmp_path, 10, 20)
        assert curve(tmp_path) == [(10, 10 / 64), (20, 20 / 64)]  # on the disk at once
    start_event, start, *rest = event_files.events(tmp_path)
    assert start_event.file_version == "brain.Event:2" and start.session_log.status == 1 and start.step == 0
    values = {value.tag: value for event in rest for value in event.summary.value}
    text = values["config/text_summary"].tensor.string_val[0].decode()
    assert json.loads(text) == json.loads(configs.to_json(CONFIG))
    hparams = values["_hparams_/session_start_info"].metadata.plugin_data
    assert hparams.plugin_name == "hparams" and b"net.channel_multipliers" in hparams.content
    assert values["samples/grid"].image.encoded_image_string == (tmp_path / "samples" / "20.png").read_bytes()
    assert (values["samples/grid"].image.height, values["samples/grid"].image.width) == (4, 6)
    tenths, quarters = (values[tag].histo for tag in ("held_out/loss_by_tenth_of_t", "training/loss_by_quarter_of_t"))
    assert list(tenths.bucket_limit) == [2 * i for i in range(1, 11)] and tenths.min == 0  # T is 20
    assert list(tenths.bucket) == [x or 0 for x in TENTHS] and list(quarters.bucket) == [0.5, 0, 0.25, 0.125]
    assert {(tag, value) for tag, step, value in event_files.scalars(tmp_path) if step == 20} == {
        ("training/loss", 20 / 64), ("training/skipped", 0), ("training/steps_per_s", 5), ("held_out/loss", 20 / 128),
        *((f"training/loss_by_quarter_of_t_{i}", x) for i, x in ((1, 0.5), (3, 0.25), (4, 0.125))),
        ("samples/sample_mean_1", 0.5), ("samples/sample_mean_2", 0.25),
    }  # fmt: skip


@pytest.mark.parametrize("lost", [0, 1, 200, 10**6], ids=["nothing", "a byte", "a step", "everything"])
def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path, lost):
    """Killed after step 40, when the events' last bytes had not been written; the last checkpoint is of step 20."""
    with trainer.track(["tensorboard"], CONFIG, tmp_path, 0) as metrics:
        take_steps(metrics, tmp_path, 10, 20, 30, 40)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - lost)])
    with trainer.track(["tensorboard"], CONFIG, tmp_path, 20) as metrics:
        assert [step for step, _ in curve(tmp_path)] == [10, 20]
        take_steps(metrics, tmp_path, 25, 30, 40, 50)
    rows = tracking.read_metrics(tmp_path / "metrics.jsonl")
    for tag, name in (("training/loss", "loss"), ("held_out/loss", "held_out_loss")):
        assert curve(tmp_path, tag) == [(row["step"], row[name]) for row in rows if name in row]
    assert [step for step, _ in curve(tmp_path)] == [10, 20, 25, 30, 40, 50]
    grids = [e.step for e in event_files.events(tmp_path) for value in e.summary.value if value.tag == "samples/grid"]
    assert grids == [20, 40]


def test_a_tracker_may_come_later_and_times_of_earlier_lines_follow_from_their_speeds(tmp_path):
    with trainer.track([], CONFIG, tmp_path, 0) as metrics:
        metrics.file.write({"note": "no step"})
        take_steps(metrics, tmp_path, 10, 20, 30)
    assert not (tmp_path / "tensorboard").exists()
    with trainer.track(["tensorboard", "tensorboard"], CONFIG, tmp_path, 30):
        pass
    assert [step for step, _ in curve(tmp_path)] == [10, 20, 30]
    times = {event.step: event.wall_time for event in event_files.events(tmp_path)}
    np.testing.assert_allclose(np.diff([times[step] for step in (0, 10, 20, 30)]), 2.0, atol=1e-3)  # at 5 steps/s


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "is_main_process", lambda: False)
    with trainer.track(["tensorboard", "wandb"], CONFIG, tmp_path, 0) as metrics:
        metrics.file.write(training_row(10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_package_that_is_absent_is_named_with_its_extra_before_anything_is_made(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, trackers.PACKAGES[name], None)
    (tmp_path / "tiny.py").write_text(TINY)
    done = run("train.py", tmp_path / "tiny.py", "--workdir", tmp_path / "run", "--log", name, status=2)
    assert f"which is not installed: pip install 'ddpm-jax[{name}]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_later_says_so_once_and_the_run_goes_on(tmp_path, server, monkeypatch, capsys):
    with trainer.track(["tensorboard", "wandb"], CONFIG, tmp_path, 0) as metrics:
        metrics.file.write(training_row(10))
        with monkeypatch.context() as patch:
            patch.setattr(trackers.TensorBoard, "write", lambda *_: 1 / 0)
            metrics.file.write(training_row(20))
        metrics.file.write(training_row(30))
    shown = capsys.readouterr().err
    assert shown.count("train: --log tensorboard failed: ZeroDivisionError") == 1
    assert "Training goes on; the next start adds what is missing" in shown
    assert [row["step"] for row in tracking.read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    assert list(server.lines) == [10, 20, 30]  # the other one is not disturbed
    with trainer.track(["tensorboard"], CONFIG, tmp_path, 30):
        assert [step for step, _ in curve(tmp_path)] == [10, 20, 30]


# --- Weights & Biases


def test_wandb_continues_a_run_after_the_last_step_that_it_has(tmp_path, server):
    """Killed after step 40; W&B has the steps to 30, and the last checkpoint is of step 20."""
    with trainer.track(["wandb"], CONFIG, tmp_path, 0) as metrics:
        take_steps(metrics, tmp_path, 10, 20, 30)
    assert list(server.lines) == [10, 20, 30] and server.exit_codes == [0]
    (tmp_path / "metrics.jsonl").write_text("".join((tmp_path / "metrics.jsonl").read_text().splitlines(True)[:3]))
    with trainer.track(["wandb"], CONFIG, tmp_path, 20) as metrics:
        take_steps(metrics, tmp_path, 25, 30, 40, 45)
    assert list(server.lines) == [10, 20, 30, 40, 45]
    before, second = server.inits
    assert before["id"] is None and second["id"] == "abc" and before["resume"] == second["resume"] == "allow"
    assert second["config"]["schedule"]["T"] == 20 and second["dir"] == str(tmp_path)
    line = server.lines[40]
    assert line["training/loss"] == 40 / 64 and line["held_out/loss"] == 40 / 128
    assert line["samples/grid"] == str(tmp_path / "samples" / "40.png")
    heights, edges = line["training/loss_by_quarter_of_t"]
    assert heights == [0.5, 0, 0.25, 0.125] and edges == [0, 5, 10, 15, 20]


def test_wandb_gets_what_was_never_sent_and_no_step_without_its_evaluation(tmp_path, server):
    with trainer.track([], CONFIG, tmp_path, 0) as metrics:
        take_steps(metrics, tmp_path, 10)
    with trainer.track(["wandb"], CONFIG, tmp_path, 10) as metrics:
        metrics.file.write(training_row(20))  # interrupted while it draws the samples of step 20
    assert list(server.lines) == [10]
    with trainer.track(["wandb"], CONFIG, tmp_path, 20) as metrics:
        metrics.file.write(evaluation_row(20))
    assert list(server.lines) == [10, 20]
    assert server.lines[20]["training/loss"] == 20 / 64 and server.lines[20]["held_out/loss"] == 20 / 128
    with pytest.raises(KeyError), trainer.track(["wandb"], CONFIG, tmp_path, 20):
        raise KeyError
    assert server.exit_codes == [0, 0, 1]


def test_what_wandb_refuses_is_an_error_before_training(tmp_path, server):
    server.error = RuntimeError("no API key")
    with pytest.raises(ValueError, match=r"--log wandb: no API key \(WANDB_MODE=offline needs no account\)"):
        with trainer.track(["wandb"], CONFIG, tmp_path, 0):
            pass


@pytest.mark.slow
def test_the_newest_offline_files_of_wandb_have_the_whole_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with trainer.track(["wandb"], CONFIG, tmp_path, 0) as metrics:
        take_steps(metrics, tmp_path, 10, 20, 30)
    with trainer.track(["wandb"], CONFIG, tmp_path, 20) as metrics:
        take_steps(metrics, tmp_path, 30, 40)
    before, second = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert before.name == second.name
    assert [line["_step"] for line in event_files.wandb_history(before)] == [10, 20, 30]
    lines = list(event_files.wandb_history(second))
    assert [(line["_step"], line["training/loss"]) for line in lines] == [(s, s / 64) for s in (10, 20, 30, 40)]
    grid = second.parent / "files" / lines[-1]["samples/grid/path"]
    assert grid.read_bytes() == (tmp_path / "samples" / "40.png").read_bytes()
    assert lines[-1]["held_out/loss_by_tenth_of_t/values"] == [x or 0 for x in TENTHS]


# --- traces


class Batch:
    def __init__(self, count):
        self.indices = np.zeros((count, 4), np.int32)


def traced_steps(workdir) -> list[int]:
    """The numbers of the annotated steps in a run's only trace."""
    (path,) = (workdir / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


@pytest.mark.parametrize(
    ("steps", "step_counts", "traced", "printed"),
    [
        ("3:4", [1] * 6, [3, 4], "steps 3 to 4"),
        ("3:4", [2, 2, 2], [4], "steps 3 to 4"),
        ("2:5", [2, 2, 2], [2, 4, 6], "steps 1 to 6"),
        ("5:9", [1] * 6, [5, 6], "steps 5 to 6"),
    ],
    ids=["of single steps", "of calls", "of whole calls", "of a run that ends before"],
)
def test_a_trace_has_the_steps_that_were_named(tmp_path, capsys, steps, step_counts, traced, printed):
    with trainer.profile(steps, tmp_path, 0, lambda state, bad, batch: (jnp.sin(state), bad, {})) as take_step:
        state = jnp.ones(4)
        for count in step_counts:
            state, _, _ = take_step(state, 0, Batch(count))
    assert traced_steps(tmp_path) == traced
    shown = capsys.readouterr().out
    assert shown.startswith(f"profile   {printed}: tensorboard --logdir {tmp_path / 'profile'}, or xprof")


def test_a_run_that_is_past_the_steps_goes_on_without_a_trace(tmp_path, capsys):
    with trainer.profile("3:4", tmp_path, 4, lambda *_: (0, 0, {})) as take_step:
        take_step(0, 0, Batch(1))
    assert capsys.readouterr().out == "profile   none: steps 3 to 4 were taken before; the run is at 4\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "0:2", "4:3", "2:61", "a:b"])
def test_other_steps_are_refused(tmp_path, text):
    (tmp_path / "tiny.py").write_text(TINY)
    flags = ("--workdir", tmp_path / "run", "--steps", 60, "--profile", text)
    done = run("train.py", tmp_path / "tiny.py", *flags, status=2)
    message = f"--profile must be START:STOP with 1 <= START <= STOP <= --steps 60, got {text!r}"
    assert message in done.stderr and not (tmp_path / "run").exists()


# --- whole runs


@pytest.mark.slow
def test_a_run_that_is_killed_and_continued_is_in_tensorboard_as_in_its_metrics(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY.replace("steps=3", "steps=60"))
    workdir = tmp_path / "run"
    args = (*TRAIN_WITHOUT_PREVIEWS, tmp_path / "tiny.py", "--workdir", workdir, "--devices", 1, "--log", "tensorboard")
    killed = start_process(*args)
    wait_for(lambda: (workdir / "checkpoints" / "30").exists(), killed)
    killed.kill()
    killed.communicate()
    shown = run_process(*args, "--profile", "58:59")
    assert "continued from step" in shown.stdout and "failed" not in shown.stderr
    losses = [row["loss"] for row in tracking.read_metrics(workdir / "metrics.jsonl")]
    assert [step for step, _ in curve(workdir)] == list(range(1, 61))
    np.testing.assert_allclose([loss for _, loss in curve(workdir)], losses, rtol=1e-6)
    assert traced_steps(workdir) == [58, 59]
