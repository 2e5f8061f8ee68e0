"""`python -m ddpm_jax.convert` as a person runs it: what becomes a run, what leaves one, and what is refused."""

import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import goldens_loader as goldens
import jax
import numpy as np
import published
import pytest
import test_convert_original
import tiny_run
import tyro
from safetensors.numpy import load_file, save_file

import sample
import train
from ddpm_jax import checkpoint, runs, training
from ddpm_jax import config as configs
from ddpm_jax.config import objects
from ddpm_jax.convert import openai
from ddpm_jax.convert.__main__ import COMMANDS, main
from ddpm_jax.evaluate import __main__ as evaluate

ROOT = pathlib.Path(__file__).parents[1]


def convert(*args) -> int:
    return main([str(arg) for arg in args])


def model(run) -> runs.Model:
    return runs.Model(run, step=None, weights="ema", sampling={})


def same_bytes(one, two) -> bool:
    leaves = list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    return bool(leaves) and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of diffusers and the run that was made of it."""
    home = tmp_path_factory.mktemp("convert")
    published.write(home / "source")
    assert convert("from", "diffusers", home / "source", "--workdir", home / "run") == 0
    return home


# --- what becomes a run


def test_a_run_of_diffusers_weights_is_a_run_and_remembers_its_source(home):
    made = model(home / "run")
    assert (made.shape, made.levels, made.step, made.dtype) == ((8, 8, 3), 256, 0, np.uint8)
    assert configs.read(home / "run" / "config.json") == made.config
    with checkpoint.Checkpoints(home / "run" / "checkpoints", read_only=True) as saved:
        meta = saved.meta()
    origin = meta["origin"]
    assert origin["format"] == "diffusers" and meta["config"]["data"]["source"] == "unknown"
    assert set(origin["files"]) == {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    for name, kept in origin["files"].items():
        content = (home / "source" / name).read_bytes()
        assert kept == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert origin["tensors"]["down_blocks.1.resnets.0.conv_shortcut.weight"] == "(64, 32, 1, 1) float32"
    assert len(origin["tensors"]) == 144
    assert meta["fingerprint"]["ema"] == meta["fingerprint"]["params"]
    # and its optimizer is as fresh as that of a new run
    fresh = training.init(made.params, objects.optimizer(made.config))
    with checkpoint.Checkpoints(home / "run" / "checkpoints", read_only=True) as saved:
        assert same_bytes(saved.restore(fresh).tree, fresh)


def test_what_files_do_not_say_is_asked_by_flags(home, tmp_path, capsys):
    flags = ["--levels", 65536, "--source", "folder:pictures"]
    assert convert("from", "diffusers", home / "source", "--workdir", tmp_path / "run", *flags) == 0
    made = model(tmp_path / "run")
    assert (made.levels, made.dtype, made.config.data.source) == (65536, np.uint16, "folder:pictures")
    assert "702,499 parameters for images 8x8x3 of 65536 levels" in capsys.readouterr().out
    assert convert("from", "diffusers", home / "source", "--workdir", tmp_path / "floats", "--range", -2, 3) == 0
    assert model(tmp_path / "floats").levels == (-2.0, 3.0)


def test_the_originals_checkpoint_is_a_run_with_raw_and_averaged_weights(tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **test_convert_original.checkpoint())
    (tmp_path / "small.py").write_text(
        "from ddpm_jax.config import Config, Data, Net\n"
        "config = Config(data=Data('npz:mine.npz'), net=Net(32, (1, 2), 1, (8,), dropout=0.1))\n"
    )
    given = [tmp_path / "weights.npz", "--config", tmp_path / "small.py", "--shape", 16, 16, 3]
    assert convert("from", "original", *given, "--workdir", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "288 tensors, all used; raw and averaged weights" in said and "291 variables of its training" in said
    raw = runs.Model(tmp_path / "run", step=None, weights="raw", sampling={})
    ema = model(tmp_path / "run")
    assert raw.step == ema.step == 790_000 and raw.fingerprint != ema.fingerprint
    assert ema.config.data.source == "npz:mine.npz" and ema.config.net.dropout == 0.1
    np.testing.assert_array_equal(raw.params["conv_out"]["bias"], ema.params["conv_out"]["bias"] + np.float32(0.25))


@pytest.mark.slow
def test_such_a_run_is_drawn_from_evaluated_and_trained_on(tmp_path, capsys):
    short = {"num_train_timesteps": 20, "beta_start": 0.005, "beta_end": 0.6}
    published.write(tmp_path / "source", scheduler=published.LARGE | short)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", train=images)
    run, data = tmp_path / "run", f"npz:{tmp_path / 'mine.npz'}"
    assert convert("from", "diffusers", tmp_path / "source", "--workdir", run, "--source", data) == 0
    assert sample.main([str(run), "--num", "3", "--out", str(tmp_path / "drawn")]) == 0
    assert np.load(tmp_path / "drawn" / "samples.npz")["arr_0"].shape == (3, 8, 8, 3)
    assert evaluate.main([str(run), "likelihood", "--num", "3", "--estimate", "4"]) == 0
    (tmp_path / "its.py").write_text(f"from ddpm_jax.config import read\nconfig = read({str(run / 'config.json')!r})\n")
    assert train.main([str(tmp_path / "its.py"), "--workdir", str(run), "--steps", "1"]) == 0
    assert "step 1: held-out loss" in capsys.readouterr().out
    with checkpoint.Checkpoints(run / "checkpoints", read_only=True) as saved:
        assert saved.steps() == [0, 1] and saved.meta(1)["origin"] == saved.meta(0)["origin"]


# --- and back


def test_from_diffusers_and_back_is_bit_for_bit(home, tmp_path):
    assert convert("to", "diffusers", home / "run", tmp_path / "out") == 0
    before = load_file(home / "source" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(before) == set(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline" and index["unet"] == ["diffusers", "UNet2DModel"]
    assert convert("from", "diffusers", tmp_path / "out", "--workdir", tmp_path / "again") == 0
    assert model(tmp_path / "again").fingerprint == model(home / "run").fingerprint
    assert model(tmp_path / "again").config == model(home / "run").config


def test_a_run_of_ours_goes_to_diffusers_and_comes_back_as_it_was(tmp_path):
    config = configs.Config(
        schedule=configs.Schedule("cosine", T=30), net=configs.Net(16, (1, 2), 1, (4,), groups=8, head_channels=8),
        loss=configs.Loss("hybrid", predicts="v"), sampling=configs.Sampling(steps=30),
    )  # fmt: skip
    run = tiny_run.make(tmp_path / "ours", config, shape=(8, 8, 1), levels=256)
    assert convert("to", "diffusers", run, tmp_path / "raw", "--weights", "raw") == 0
    assert convert("to", "diffusers", run, tmp_path / "ema") == 0
    for weights in ("raw", "ema"):
        assert convert("from", "diffusers", tmp_path / weights, "--workdir", tmp_path / f"{weights}-run") == 0
        ours = runs.Model(run, step=None, weights=weights, sampling={})
        again = model(tmp_path / f"{weights}-run")
        assert same_bytes(ours.params, again.params)
        assert again.config.net == configs.Net(16, (1, 2), 1, (4,), groups=8, head_channels=8)
        assert (again.config.schedule, again.config.loss) == (config.schedule, config.loss)


def test_what_diffusers_cannot_express_is_refused_and_nothing_is_written(tmp_path, capsys):
    run = tiny_run.make(tmp_path / "ours")
    assert convert("to", "diffusers", run, tmp_path / "out") == 2
    assert "net.groups = 32: there they divide the channels" in capsys.readouterr().err
    assert convert("to", "diffusers", run, tmp_path / "out", "--sampler", "unipc") == 2
    assert sorted(os.listdir(tmp_path)) == ["ours"]


def test_plain_arrays_open_without_jax_and_say_what_they_are(home, tmp_path):
    assert convert("to", "plain", home / "run", tmp_path / "plain") == 0
    reader = f"""
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file
folder = pathlib.Path({str(tmp_path / "plain")!r})
weights, schedule = load_file(folder / "weights.safetensors"), load_file(folder / "schedule.safetensors")
assert not {{"jax", "flax", "torch", "ddpm_jax"}} & set(sys.modules)
assert weights["down_0/block_0/conv1/kernel"].shape == (3, 3, 32, 32)
model, config = (json.loads((folder / name).read_text()) for name in ("model.json", "config.json"))
assert model["image"]["shape"] == [8, 8, 3] and config["schedule"]["T"] == 1000
betas = np.linspace(1e-4, 0.02, 1000)  # the paper's
np.testing.assert_allclose(schedule["betas"], betas, rtol=1e-11)
alpha_bar = np.cumprod(1 - betas)
np.testing.assert_allclose(schedule["signal"][1:], np.sqrt(alpha_bar), rtol=1e-12)
np.testing.assert_allclose(schedule["noise"][1:] ** 2, 1 - alpha_bar, rtol=1e-9)
assert schedule["signal"][0] == 1 and schedule["noise"][0] == 0
"""
    subprocess.run([sys.executable, "-c", reader], check=True, capture_output=True)
    assert convert("from", "plain", tmp_path / "plain", "--workdir", tmp_path / "again") == 0
    again = model(tmp_path / "again")
    assert again.fingerprint == model(home / "run").fingerprint and again.config == model(home / "run").config


# --- what is refused: each with a message, and nothing written


def spoilt(kind):
    """The small network's tensors, with something wrong."""
    held = published.tensors()
    if kind == "renamed":
        held["mid_block.resnets.0.conv1.wait"] = held.pop("mid_block.resnets.0.conv1.weight")
    if kind == "transposed":
        held["conv_in.weight"] = np.ascontiguousarray(held["conv_in.weight"].transpose(2, 3, 1, 0))
    if kind == "missing":
        del held["conv_norm_out.bias"]
    if kind == "extra":
        held["class_embedding.weight"] = np.zeros((10, 128), np.float32)
    if kind == "integers":
        held["conv_out.weight"] = held["conv_out.weight"].astype(np.int32)
    if kind == "nan":
        held["conv_out.bias"][1] = np.nan
    return held


@pytest.mark.parametrize(
    "kind, said",
    [
        ("renamed", "1 tensors are missing: mid_block.resnets.0.conv1.weight (64, 64, 3, 3)"),
        ("renamed", "1 tensors are unused: mid_block.resnets.0.conv1.wait (64, 64, 3, 3)"),
        ("transposed", "conv_in.weight (3, 3, 3, 32) where (32, 3, 3, 3) is right, which looks transposed"),
        ("missing", "1 tensors are missing: conv_norm_out.bias (32,)"),
        ("extra", "1 tensors are unused: class_embedding.weight (10, 128)"),
        ("integers", "1 tensors are not of floats: conv_out.weight is int32"),
        ("nan", "conv_out.bias holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, capsys, kind, said):
    published.write(tmp_path / "source", held=spoilt(kind))
    assert convert("from", "diffusers", tmp_path / "source", "--workdir", tmp_path / "run") == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["source"]


def test_a_damaged_folder_is_refused_and_nothing_is_written(tmp_path, capsys):
    def refused(said, *more):
        assert convert("from", "diffusers", tmp_path / "source", "--workdir", tmp_path / "run", *more) == 2
        assert said in capsys.readouterr().err
        assert os.listdir(tmp_path) in (["source"], [])

    refused("there is no folder")
    source = published.write(tmp_path / "source", config=published.CONFIG | {"surprise": 1})
    refused("surprise = 1 is a field that is not known here")
    (source / "config.json").write_text(json.dumps(published.CONFIG))
    refused("--levels must be 2 to 65536, got 1", "--levels", 1)
    refused("--range must be the lowest and the highest value", "--range", 1, 1)
    refused("--label-names names 1 labels, and the network is told 0", "--label-names", "cat")
    weights = source / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    refused("is damaged or of another kind")
    weights.rename(source / "diffusion_pytorch_model.fp16.safetensors")
    refused("holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.bin, but diffusion_pytorch_")
    (source / "scheduler_config.json").unlink()
    refused("holds no scheduler_config.json")
    (source / "config.json").write_text('{"_class_name": ')
    (source / "scheduler_config.json").write_text(json.dumps(published.LARGE))
    refused("config.json is not JSON, or damaged")


def test_a_folder_that_is_there_is_left_alone(home, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("...")
    assert convert("from", "diffusers", home / "source", "--workdir", tmp_path / "run") == 2
    assert convert("to", "plain", home / "run", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("run is there already: take a new folder") == 2
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == ["mine"]


def test_a_plain_folder_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.json").write_text('{"image": 3}')
    assert convert("from", "plain", tmp_path / "plain", "--workdir", tmp_path / "run") == 2
    assert "model.json does not say what images are" in capsys.readouterr().err


def test_calls_without_a_command_say_which_there_are(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    shown = capsys.readouterr()
    for way, format in COMMANDS:
        assert f"  {way} {format}" in shown.out and f"  {way} {format}" in shown.err


# --- OpenAI's, and the pages


def test_a_checkpoint_of_guided_diffusion_is_a_run_that_is_told_labels(tmp_path, capsys):
    case = "h/guided_open_0"
    held = {
        name.removeprefix("param:"): goldens.exact(case, name).astype(np.float32)
        for name in goldens.MANIFEST[case]["arrays"]
        if name.startswith("param:")
    }
    save_file(held, tmp_path / "model.safetensors")
    said = (
        "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 4 "
        "--learn_sigma True --class_cond True --use_scale_shift_norm True --resblock_updown True --num_head_channels 32"
    )
    given = ["from", "openai", tmp_path / "model.safetensors", "--workdir", tmp_path / "run"]
    assert convert(*given) == 2
    assert "no published checkpoint 'model'; there are: cifar10_uncond_50M_500K" in capsys.readouterr().err
    assert convert(*given, f"--flags={said}") == 2
    assert "say which by --family improved or --family guided" in capsys.readouterr().err
    assert convert(*given, "--published", "lsun_cat", "--family", "guided") == 2
    assert "give one of them" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors"]

    assert convert(*given, "--family", "guided", f"--flags={said}", "--num-classes", 10, "--step", 7) == 0
    made = model(tmp_path / "run")
    assert made.step == 7 and made.label_names == tuple("0123456789") and made.config.data.source == "unknown"
    x, t, y = (goldens.exact(case, name) for name in ("x", "t", "y"))
    condition = objects.blank(made.config, 2, (8, 8, 3))._replace(label=y.astype(np.int32))
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(objects.network(made.config, 3).apply)
        out = apply({"params": made.params}, x, t.astype(np.int32) + 1, condition)
    np.testing.assert_allclose(out, goldens.exact(case, "out"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page", ["README.md", "docs/pretrained.md"])
def test_the_commands_that_a_page_names_are_those_of_the_program(page):
    lines = re.findall(r"^python -m ddpm_jax\.convert (\w+) (\w+)([^\n#]*)", (ROOT / page).read_text(), re.M)
    assert lines
    for way, format, flags in lines:
        tyro.cli(COMMANDS[way, format][0], args=shlex.split(flags))


def test_every_published_checkpoint_of_openai_is_in_the_page():
    page = (ROOT / "docs" / "pretrained.md").read_text()
    for name in openai.PRESETS:
        assert f"`{name}`" in page, name
