"""Programs that are given what is dirty or damaged: they say what it is, in words of their own, or go on rightly."""

import json
import shutil

import numpy as np
import pytest
import shared_evaluation
from image_files import animation, converted, encoded, random_pixels, truncated
from PIL import Image
from run_programs import run, saved_steps

from ddpm_jax import config as configs
from ddpm_jax import tracking, trainer

SMALL = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule

config = Config(
    steps=2, batch=4, log_every=1, sample_every=0, save_every=1, data=Data("folder:{folder}", held_out=0.3),
    schedule=Schedule(T=4, beta_1=0.1, beta_T=0.6), net=Net(8, (1,), 1, ()),
    optim=Optim(learning_rate=1e-3, warmup=1), sampling=Sampling(steps=4, tile=4, num=4),
    evaluation=Evaluation(images=2, strata=2),
)
"""
BAD = {
    "deep/er/animated.gif": (animation("GIF"), "animated, or several images in one file: 3 frames; expected one image"),
    "deep/er/cmyk.jpg": (
        converted("CMYK", "JPEG"),
        "mode CMYK: convert it to one of L, LA, RGB, RGBA, I;16, or save it as a .npy file",
    ),
    "deep/er/empty.png": (b"", "empty: 0 bytes"),
    "deep/er/gray.png": (encoded(random_pixels(8, 8), "PNG"), "mode L, but the most frequent mode is RGB"),
    "deep/er/sixteen.png": (
        encoded(random_pixels(8, 8, dtype=np.uint16), "PNG"),
        "mode I;16, but the most frequent mode is RGB",
    ),
    "deep/er/text.png": (b"hello", "not an image, or a damaged one (none of PNG, JPEG, WEBP, BMP, TIFF, GIF)"),
    "deep/er/truncated.JPG": (
        truncated(random_pixels(64, 64, 3), "JPEG"),
        "cannot be decoded, damaged or cut off: OSError: image file is truncated (",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def shared():
    with shared_evaluation.share_programs():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder as people have them: good files in three formats and two depths, and every kind of bad one."""
    home = tmp_path_factory.mktemp("dirty")
    for i in range(9):
        path = home / "pictures" / ("a", "b/c")[i % 2] / f"{i}{('.JPG', '.webp', '.png')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(8, 8, 3, seed=i)).save(path, format=("JPEG", "WEBP", "PNG")[i % 3])
    for name, (content, _) in BAD.items():
        (home / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "pictures" / name).write_bytes(content)
    (home / "pictures" / "notes.txt").write_text("hello")
    (home / "small.py").write_text(SMALL.format(folder=home / "pictures"))
    return home


def train(home, *flags, status=0):
    """Two steps."""
    return run("train.py", home / "small.py", "--workdir", home / "run", *flags, status=status, preview=False)


def listed(text):
    """The files and reasons in a report or an error."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("  deep/er/")]
    return {name: reason for name, _, reason in (line.partition(": ") for line in lines)}


def assert_named(text):
    found = listed(text)
    assert list(found) == list(BAD)  # all of them, in the order of their paths
    for name, (_, reason) in BAD.items():
        assert found[name] == reason or (reason.endswith("(") and found[name].startswith(reason)), found[name]


@pytest.fixture(scope="module")
def trained(home):
    """What training says of a dirty folder: without, and with, leave to skip what is bad."""
    refused = train(home, status=2)
    left = (home / "run").exists()
    return refused, left, train(home, "--data.skip-bad")


def test_a_dirty_folder_is_refused_before_anything_is_done(home, trained):
    refused, left, _ = trained
    message = f"train: {home / 'pictures'}: 7 of 16 image files cannot be used; repair or remove them, or leave"
    assert message in refused.stderr and "them out with --data.skip-bad:\n" in refused.stderr
    assert_named(refused.stderr)
    assert_named(refused.stdout)  # the report says the same
    assert "Traceback" not in refused.stderr and not left


def test_with_leave_to_skip_it_trains_and_samples(home, trained):
    shown = trained[2].stdout
    assert_named(shown)
    assert "16 image files" in shown and "9 usable" in shown and "ignored   1 other files (1 .txt)" in shown
    assert "formats   3 JPEG, 3 PNG, 3 WEBP" in shown and "modes     9 RGB" in shown
    assert "6 training and 3 held-out images" in shown
    assert saved_steps(home / "run") == [1, 2]
    run("sample.py", home / "run", "--num", 3, "--out", home / "drawn")
    with np.load(home / "drawn" / "samples.npz") as drawn:
        assert drawn["arr_0"].shape == (3, 8, 8, 3)


@pytest.mark.parametrize("count", [1, 6])
def test_a_few_images_are_enough_to_try_a_set_up(tmp_path, count):
    np.save(tmp_path / "few.npy", random_pixels(count, 8, 8, 3))
    (tmp_path / "few.py").write_text(SMALL.format(folder="").replace("folder:", f"npy:{tmp_path / 'few.npy'}"))
    flags = ("--workdir", tmp_path / "run", "--sample-every", 2, "--data.held-out", 0.1)
    shown = run("train.py", tmp_path / "few.py", *flags)
    assert "bits/dim (1 image, so no error bar, estimated bound)" in shown.stdout
    assert "nan" not in shown.stdout and "Warning" not in shown.stderr
    assert ("the one image is both" in shown.stdout) == (count == 1)


def test_a_log_that_a_kill_tore_is_mended_and_another_damage_is_named(home, trained):
    path = home / "run" / "metrics.jsonl"
    whole = tracking.read_metrics(path)
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert "the run is complete: 2 steps" in train(home, "--data.skip-bad").stdout
    assert tracking.read_metrics(path) == whole and path.read_bytes().endswith(b"}\n")
    text = path.read_text()
    path.write_text(text + "?\n")
    message = f"train: {path}, line {len(whole) + 1}: not a JSON object: '?'"
    assert message in train(home, "--data.skip-bad", status=2).stderr
    assert path.read_text() == text + "?\n"
    path.write_text(text)


def test_a_damaged_config_of_a_run_stops_training_and_not_those_who_do_not_need_it(home, trained):
    path = home / "run" / "config.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    shown = train(home, "--data.skip-bad", status=2)
    assert shown.stderr.strip().startswith(f"train: {path} is not a config, or damaged: ")
    assert path.read_text() == whole[: len(whole) // 2] and saved_steps(home / "run") == [1, 2]
    # the checkpoint has the config too
    copy = shutil.copytree(home / "run", home / "copy")
    path.write_text(whole)
    run("sample.py", copy, "--num", 1, "--out", home / "more")
    evaluated = ("-m", "ddpm_jax", "evaluate", copy, "likelihood", "--num", 2, "--out", home / "bound")
    assert "bits/dim" in run(*evaluated).stdout
    # what an evaluation left is damaged
    vlb_file = next((home / "bound").glob("likelihood-*.npz"))
    vlb_file.write_bytes(vlb_file.read_bytes()[:-100])
    shown = run(*evaluated, status=2)
    assert f"evaluate: {vlb_file} is not an .npz file, or damaged (" in shown.stderr and "Traceback" not in shown.stderr


def test_a_damaged_manifest_is_named(home, trained):
    run("sample.py", home / "run", "--num", 2, "--out", home / "drawn2")
    path = home / "drawn2" / "manifest.json"
    text = path.read_text()
    path.write_text(text[:-30])
    shown = run("sample.py", home / "run", "--verify", path, status=2)
    assert shown.stderr.strip().startswith(f"sample: {path} is not a manifest, or damaged: ")
    shown = run("sample.py", home / "run", "--verify", path.parent, status=2)
    assert f"Is a directory: '{path.parent}'" in shown.stderr
    path.write_text(json.dumps(json.loads(text) | {"seed": 9}))
    (home / "drawn2" / "samples.npz").write_bytes(b"PK")
    shown = run("sample.py", home / "run", "--verify", path, status=1)
    assert "2 of 2 images differ; the size of the difference is unknown without" in shown.stdout


def test_a_run_that_was_killed_at_its_first_moment_is_taken_up(tmp_path):
    """Of each moment: a lock, half a config, a config without a folder for samples."""
    for left in ((".lock",), (".lock", "config.part"), (".lock", "config.json.part"), (".lock", "config.json")):
        folder = tmp_path / "-".join(left)
        folder.mkdir()
        for name in left:
            (folder / name).write_text(configs.to_json(configs.Config()) if name == "config.json" else "{")
        with trainer.lock_run(folder, configs.Config(steps=7)):
            assert configs.read(folder / "config.json").steps == 7 and (folder / "samples").is_dir()
