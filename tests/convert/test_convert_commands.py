"""`ddpm-jax convert` as a person runs it: what becomes a run, what leaves one, and what is refused."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import shlex
import subprocess
import sys
import types

import diffusers_files
import goldens_loader as goldens
import jax
import networks
import numpy as np
import pytest
import run_programs
import tiny_run
import tyro
from safetensors.numpy import load_file, save_file

from ddpm_jax import checkpoint, pipeline, training
from ddpm_jax import config as configs
from ddpm_jax.convert import openai, rules
from ddpm_jax.data.images import to_value_range
from ddpm_jax.model import has_learned_variance, optimizer
from ddpm_jax.programs import cli
from ddpm_jax.programs.convert import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def convert(*args) -> int:
    return cli.call(["convert", *map(str, args)])


def model(run, weights="ema") -> pipeline.Pipeline:
    return pipeline.Pipeline(run, step=None, weights=weights, sampling={})


def meta(run) -> dict:
    """What the checkpoint of a run says."""
    with checkpoint.Checkpoints(run / "checkpoints", read_only=True) as saved:
        return saved.meta()


def same_bytes(one, two) -> bool:
    leaves = list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    return bool(leaves) and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of diffusers, the run that was made of it, the printed lines and the network there."""
    home = tmp_path_factory.mktemp("convert")
    source, run = diffusers_files.write_pipeline(home / "source"), home / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert convert("from", "diffusers", source, "--workdir", run) == 0
    return types.SimpleNamespace(source=source, run=run, printed=printed.getvalue(), model=model(run))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of diffusers that holds a network of a single level."""
    folder = tmp_path_factory.mktemp("convert") / "small"
    return diffusers_files.write_pipeline(folder, config=diffusers_files.TINY, held=diffusers_files.tiny_tensors())


def test_a_full_disk_is_said_with_the_folder_and_nothing_is_left(run_folder, tmp_path):
    """A limit on the size of files, which ends a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        shown = run_programs.run("-m", "ddpm_jax", "convert", "to", "plain", run_folder, tmp_path / "out", status=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert shown.stderr == f"convert: {tmp_path / 'out'} cannot be written: [Errno 27] File too large\n"
    assert not list(tmp_path.iterdir())


# --- what becomes a run


def test_a_run_of_diffusers_weights_is_a_run_and_remembers_its_source(home):
    made = home.model
    assert (made.shape, made.levels, made.step, made.dtype) == ((8, 8, 3), 256, 0, np.uint8)
    assert "702,499 parameters for images 8x8x3 of 256 levels" in home.printed
    assert configs.read(home.run / "config.json") == made.config
    metadata = meta(home.run)
    origin = metadata["origin"]
    assert origin["format"] == "diffusers" and metadata["config"]["data"]["source"] == "unknown"
    assert set(origin["files"]) == {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    for name, file_record in origin["files"].items():
        content = (home.source / name).read_bytes()
        assert file_record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert origin["tensors"]["down_blocks.1.resnets.0.conv_shortcut.weight"] == "(64, 32, 1, 1) float32"
    assert len(origin["tensors"]) == 144
    assert metadata["fingerprint"]["ema"] == metadata["fingerprint"]["params"]
    # and its optimizer is as fresh as that of a new run
    fresh = jax.jit(lambda params: training.init(params, optimizer(made.config)))(made.params)
    with checkpoint.Checkpoints(home.run / "checkpoints", read_only=True) as saved:
        assert same_bytes(saved.restore(fresh).tree, fresh)


def test_what_files_do_not_say_is_asked_by_flags(small, tmp_path, capsys):
    flags = ["--levels", 65536, "--source", "folder:pictures"]
    assert convert("from", "diffusers", small, "--workdir", tmp_path / "run", *flags) == 0
    made = model(tmp_path / "run")
    assert (made.levels, made.dtype, made.config.data.source) == (65536, np.uint16, "folder:pictures")
    assert "parameters for images 8x8x3 of 65536 levels" in capsys.readouterr().out
    assert convert("from", "diffusers", small, "--workdir", tmp_path / "floats", "--range", -2, 0.1) == 0
    # in float32, as that of images which are loaded with it: they can be compared
    assert model(tmp_path / "floats").levels == to_value_range((-2, 0.1)) != (-2, 0.1)


def test_the_originals_checkpoint_is_a_run_with_raw_and_averaged_weights(tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **networks.original_checkpoint())
    (tmp_path / "small.py").write_text(
        "from ddpm_jax.config import Config, Data, Net\n"
        "config = Config(data=Data('npz:mine.npz'), net=Net(32, (1, 2), 1, (8,), dropout=0.1))\n"
    )
    arguments = [tmp_path / "weights.npz", "--config", tmp_path / "small.py", "--shape", 16, 16, 3]
    assert convert("from", "original", *arguments, "--workdir", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "288 tensors, all used; raw and averaged weights" in printed and "291 variables of its optimizer" in printed
    raw, ema = (model(tmp_path / "run", weights) for weights in ("raw", "ema"))
    assert raw.step == ema.step == 790_000 and raw.fingerprint != ema.fingerprint
    assert ema.config.data.source == "npz:mine.npz" and ema.config.net.dropout == 0.1
    np.testing.assert_array_equal(
        raw.params["conv_out"]["bias"], np.asarray(ema.params["conv_out"]["bias"]) + np.float32(0.25)
    )
    (tmp_path / "small.py").write_text(
        "from ddpm_jax.config import *\nconfig = Config(net=Net(kind='patch_transformer'))"
    )
    assert convert("from", "original", *arguments, "--workdir", tmp_path / "other") == 2
    assert "net.kind is 'patch_transformer', and the original is a U-Net" in capsys.readouterr().err


# --- and back


def test_from_diffusers_and_back_is_bit_for_bit(home, tmp_path):
    assert convert("to", "diffusers", home.run, tmp_path / "out") == 0
    before = load_file(home.source / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(before) == set(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline" and index["unet"] == ["diffusers", "UNet2DModel"]
    assert convert("from", "diffusers", tmp_path / "out", "--workdir", tmp_path / "again") == 0
    assert meta(tmp_path / "again")["fingerprint"] == meta(home.run)["fingerprint"]
    assert configs.read(tmp_path / "again" / "config.json") == home.model.config


def test_a_run_of_ours_goes_to_diffusers_and_comes_back_as_it_was_and_can_be_used(tmp_path):
    """What comes back is drawn from and trained on."""
    config = configs.Config(
        schedule=configs.Schedule("cosine", T=20), loss=configs.Loss(predicts="v"),
        net=configs.Net(16, (1,), 1, (), groups=8, head_channels=8), sampling=configs.Sampling(steps=20),
    )  # fmt: skip
    run = tiny_run.make_run(tmp_path / "ours", config, shape=(8, 8, 1), levels=256)
    np.savez(tmp_path / "mine.npz", train=np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8))
    data = f"npz:{tmp_path / 'mine.npz'}"
    assert convert("to", "diffusers", run, tmp_path / "raw", "--weights", "raw") == 0
    assert convert("to", "diffusers", run, tmp_path / "ema") == 0
    for weights in ("raw", "ema"):
        back = tmp_path / f"{weights}-run"
        assert convert("from", "diffusers", tmp_path / weights, "--workdir", back, "--source", data) == 0
        ours, again = model(run, weights), model(back)
        assert same_bytes(ours.params, again.params), weights
        assert again.config.net == config.net
        assert (again.config.schedule, again.config.loss) == (config.schedule, config.loss)

    run_programs.run("sample.py", back, "--num", 3, "--out", tmp_path / "drawn")
    assert np.load(tmp_path / "drawn" / "samples.npz")["arr_0"].shape == (3, 8, 8, 1)
    (tmp_path / "its.py").write_text(f"from ddpm_jax.config import read\nconfig = read({str(back / 'config.json')!r})")
    run_programs.run("train.py", tmp_path / "its.py", "--workdir", back, "--steps", 1, preview=False)
    with checkpoint.Checkpoints(back / "checkpoints", read_only=True) as saved:
        assert saved.steps() == [0, 1] and saved.meta(1)["origin"] == saved.meta(0)["origin"]


def test_what_diffusers_cannot_express_is_refused_and_nothing_is_written(run_folder, tmp_path, capsys):
    assert convert("to", "diffusers", run_folder, tmp_path / "out") == 2
    assert "net.groups = 32: there they divide the channels" in capsys.readouterr().err
    assert convert("to", "diffusers", run_folder, tmp_path / "out", "--sampler", "unipc") == 2
    assert os.listdir(tmp_path) == []


def test_plain_arrays_open_without_jax_and_say_what_they_are(run_folder, tmp_path):
    assert convert("to", "plain", run_folder, tmp_path / "plain") == 0
    reader = f"""
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file
folder = pathlib.Path({str(tmp_path / "plain")!r})
weights, schedule = load_file(folder / "weights.safetensors"), load_file(folder / "schedule.safetensors")
assert not {{"jax", "flax", "torch", "ddpm_jax"}} & set(sys.modules)
assert weights["down_0/block_0/conv1/kernel"].shape == (3, 3, 8, 8)
model, config = (json.loads((folder / name).read_text()) for name in ("model.json", "config.json"))
assert model["image"]["shape"] == [8, 8, 1] and config["schedule"]["T"] == 20
betas = np.linspace(0.005, 0.6, 20)
np.testing.assert_allclose(schedule["betas"], betas, rtol=1e-11)
alpha_bar = np.cumprod(1 - betas)
np.testing.assert_allclose(schedule["signal"][1:], np.sqrt(alpha_bar), rtol=1e-12)
np.testing.assert_allclose(schedule["noise"][1:] ** 2, 1 - alpha_bar, rtol=1e-9)
assert schedule["signal"][0] == 1 and schedule["noise"][0] == 0
"""
    subprocess.run([sys.executable, "-c", reader], check=True, capture_output=True)
    assert convert("from", "plain", tmp_path / "plain", "--workdir", tmp_path / "again") == 0
    ours, again = model(run_folder), model(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint and again.config == ours.config


@pytest.mark.parametrize("format", ["plain", "diffusers"])
def test_weights_that_are_not_those_that_were_written_are_refused(small, run_folder, tmp_path, capsys, format):
    """One bit of the last number, which every reader of the file takes for a number."""
    run = run_folder
    if format == "diffusers":
        run = tmp_path / "ours"
        assert convert("from", "diffusers", small, "--workdir", run) == 0
    assert convert("to", format, run, tmp_path / "out") == 0
    weights = next((tmp_path / "out").rglob("*weights.safetensors" if format == "plain" else WEIGHTS))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert convert("from", format, tmp_path / "out", "--workdir", tmp_path / "again") == 2
    assert "are damaged, or others than were written: their fingerprint is sha256:" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    if format == "plain":
        path = tmp_path / "out" / "model.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "fingerprint"}))
        assert convert("from", format, tmp_path / "out", "--workdir", tmp_path / "again") == 2
        assert "model.json has no fingerprint of the weights" in capsys.readouterr().err


# --- what is refused: each with a message, and nothing written


def refused(capsys, folder, source, *more) -> str:
    """The error for a source of diffusers that becomes no run in this folder, where nothing is written."""
    before = sorted(os.listdir(folder))
    assert convert("from", "diffusers", source, "--workdir", folder / "run", *more) == 2
    assert sorted(os.listdir(folder)) == before
    return capsys.readouterr().err


def test_tensors_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, capsys):
    held = diffusers_files.tiny_tensors()
    held["mid_block.resnets.0.conv1.wait"] = held.pop("mid_block.resnets.0.conv1.weight")
    held["conv_in.weight"] = np.ascontiguousarray(held["conv_in.weight"].transpose(2, 3, 1, 0))
    del held["conv_norm_out.bias"]
    held["class_embedding.weight"] = np.zeros((10, 64), np.float32)
    held["conv_out.weight"] = held["conv_out.weight"].astype(np.int32)
    message = refused(
        capsys, tmp_path, diffusers_files.write_pipeline(tmp_path / "spoilt", config=diffusers_files.TINY, held=held)
    )
    for part in (
        "2 tensors are missing: ",
        "mid_block.resnets.0.conv1.weight (16, 16, 3, 3)",
        "conv_norm_out.bias (16,)",
        "2 tensors are unused: ",
        "mid_block.resnets.0.conv1.wait (16, 16, 3, 3)",
        "class_embedding.weight (10, 64)",
        "conv_in.weight (3, 3, 3, 16) where (16, 3, 3, 3) is right, which looks transposed",
        "1 tensors are not of floats: conv_out.weight is int32",
    ):
        assert part in message, (part, message)

    held = diffusers_files.tiny_tensors()
    held["conv_out.bias"][1] = np.nan
    source = diffusers_files.write_pipeline(tmp_path / "nan", config=diffusers_files.TINY, held=held)
    assert "conv_out.bias holds NaN or infinity" in refused(capsys, tmp_path, source)


def test_a_damaged_folder_is_refused_and_nothing_is_written(small, tmp_path, capsys):
    def check_refused(message, *more):
        assert message in refused(capsys, tmp_path, tmp_path / "source", *more)

    check_refused("there is no folder")
    config = diffusers_files.TINY | {"surprise": 1}
    source = diffusers_files.write_pipeline(tmp_path / "source", config=config, held=load_file(small / WEIGHTS))
    check_refused("surprise = 1 is a field that is not known here")
    (source / "config.json").write_text(json.dumps(diffusers_files.TINY))
    check_refused("--levels must lie in [2, 65536], got 1", "--levels", 1)
    check_refused("--range must be the lowest and the highest value", "--range", 1, 1)
    check_refused("--label-names has 1 names, but the network has 0 labels", "--label-names", "cat")
    weights = source / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    check_refused("is damaged or of another kind")
    weights.rename(source / "diffusion_pytorch_model.fp16.safetensors")
    check_refused(
        "holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.bin, but diffusion_pytorch_"
    )
    (source / "scheduler_config.json").unlink()
    check_refused("holds no scheduler_config.json")
    (source / "config.json").write_text('{"_class_name": ')
    (source / "scheduler_config.json").write_text(json.dumps(diffusers_files.DDPM_FIXED_LARGE))
    check_refused("config.json is not JSON, or damaged")


def test_a_folder_that_is_there_is_left_alone(small, run_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("...")
    assert convert("from", "diffusers", small, "--workdir", tmp_path / "run") == 2
    assert convert("to", "plain", run_folder, tmp_path / "run") == 2
    assert capsys.readouterr().err.count("run exists: give a new folder") == 2
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == ["mine"]


def test_a_plain_folder_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.json").write_text('{"image": 3}')
    assert convert("from", "plain", tmp_path / "plain", "--workdir", tmp_path / "run") == 2
    assert "model.json has no image shape" in capsys.readouterr().err


def test_calls_without_a_command_say_which_there_are(capsys):
    assert cli.call(["convert"]) == 2 and cli.call(["convert", "--help"]) == 0
    shown = capsys.readouterr()
    for way, format in COMMANDS:
        assert f"  {way} {format}" in shown.out and f"  {way} {format}" in shown.err


@pytest.mark.parametrize("null_label", [False, True])
def test_labels_come_along_and_go_back(small, tmp_path, capsys, null_label):
    held = load_file(small / WEIGHTS)
    held["class_embedding.weight"] = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    source = diffusers_files.write_pipeline(
        tmp_path / "source", config=diffusers_files.TINY | {"num_class_embeds": 4}, held=held
    )
    run, classes = tmp_path / "run", 4 - null_label
    flag = ["--null-label"] if null_label else []
    names = ["--label-names", *"abcd"[:classes]]
    assert convert("from", "diffusers", source, "--workdir", run, *flag, *names) == 0
    made = model(run)
    assert made.config.net.num_classes == classes and made.label_names == tuple("abcd"[:classes])
    # without a row for none, the network always had a label, and images of none are refused
    assert (made.config.condition.dropout > 0) == null_label
    table = np.asarray(made.params["label"]["table"]["embedding"])
    np.testing.assert_array_equal(table[:4], held["class_embedding.weight"])
    assert null_label or (table.shape == (5, 64) and not table[4].any())
    capsys.readouterr()
    assert convert("to", "diffusers", run, tmp_path / "back") == 0
    assert "class_labels=...) in a loop of your own" + ", 3 for none" * null_label in capsys.readouterr().out
    back = load_file(tmp_path / "back" / "unet" / WEIGHTS)
    assert set(back) == set(held) and all(back[name].tobytes() == held[name].tobytes() for name in held)
    # what we wrote says itself what its last label is
    assert convert("from", "diffusers", tmp_path / "back", "--workdir", tmp_path / "again", *flag) == 0
    other = [] if null_label else ["--null-label"]
    assert convert("from", "diffusers", tmp_path / "back", "--workdir", tmp_path / "other", *other) == 2
    assert ("stands for none: give" if null_label else "leave out") + " --null-label" in capsys.readouterr().err


def test_where_the_folders_own_sampler_draws_other_images_is_said(small, home, tmp_path, capsys):
    assert "note:" not in home.printed
    settings = {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}
    source = diffusers_files.write_pipeline(
        tmp_path / "source", config=diffusers_files.TINY, scheduler=settings, held=load_file(small / WEIGHTS)
    )
    run = tmp_path / "run"
    for command in (("from", "diffusers", source, "--workdir", run), ("to", "diffusers", run, tmp_path / "to")):
        assert convert(*command) == 0
        printed = capsys.readouterr().out
        assert (
            "note: clip_sample = True: " in printed and "note: timestep_spacing = 'linspace': every step of" in printed
        )


# --- OpenAI's, and the pages


def test_a_checkpoint_of_guided_diffusion_is_a_run_with_labels(tmp_path, capsys):
    case = "h/guided_open_0"
    held = {
        name.removeprefix("param:"): goldens.stored_array(case, name).astype(np.float32)
        for name in goldens.MANIFEST[case]["arrays"]
        if name.startswith("param:")
    }
    save_file(held, tmp_path / "model.safetensors")
    trained_with = (
        "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 4 "
        "--learn_sigma True --class_cond True --use_scale_shift_norm True --resblock_updown True --num_head_channels 32"
    )
    arguments = ["from", "openai", tmp_path / "model.safetensors", "--workdir", tmp_path / "run"]
    assert convert(*arguments) == 2
    assert "no published checkpoint 'model'; there are: cifar10_uncond_50M_500K" in capsys.readouterr().err
    assert convert(*arguments, f"--flags={trained_with}") == 2
    assert "needs the project that they are of: --family improved or" in capsys.readouterr().err
    assert convert(*arguments, "--published", "lsun_cat", "--family", "guided") == 2
    assert "give one of them" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors"]

    assert convert(*arguments, "--family", "guided", f"--flags={trained_with}", "--num-classes", 10, "--step", 7) == 0
    made = model(tmp_path / "run")
    assert made.step == 7 and made.label_names == tuple("0123456789") and made.config.data.source == "unknown"
    # the network and the parameters that test_goldens_networks compares with what theirs gives
    net = networks.openai_net(goldens.MANIFEST[case]["args"])
    assert made.config.net == net and has_learned_variance(made.config)
    assert same_bytes(made.params, rules.apply(openai.rules(made.params, net, "legacy"), held, made.params))


def test_the_commands_of_the_page_on_weights_are_those_of_the_program():
    lines = re.findall(r"^ddpm-jax convert (\w+) (\w+)([^\n#]*)", (ROOT / "docs/pretrained.md").read_text(), re.M)
    assert lines
    for way, format, flags in lines:
        tyro.cli(COMMANDS[way, format], args=shlex.split(flags))


def test_every_published_checkpoint_of_openai_is_in_the_page():
    page = (ROOT / "docs" / "pretrained.md").read_text()
    for name in openai.PRESETS:
        assert f"`{name}`" in page, name
