"""Preflight: what compiled programs say of themselves against what happens, and slices of TPUs that are not there."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_programs import run

from ddpm_jax import checkpoint, data
from ddpm_jax import config as configs
from ddpm_jax.data import device_loader
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build, network
from ddpm_jax.preflight import compile_stats, local_measurement, lowering, report, topology
from ddpm_jax.process import tpu
from ddpm_jax.programs import cli

ROOT = pathlib.Path(__file__).parents[2]

TINY = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Sampling, Schedule

config = Config(
    steps=1000, batch=1024, data=Data("digits"), schedule=Schedule(T=20, beta_1=0.005, beta_T=0.6),
    net=Net(8, (1,), 1, (8,), dropout=0.1), sampling=Sampling(steps=20, tile=4, num=8), evaluation=Evaluation(32, 4),
)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("preflight") / "tiny.py"
    path.write_text(TINY)
    return path


def preflight(*args, status=0):
    """The program in a process of its own: its report as JSON, and what it printed."""
    out = pathlib.Path(str(args[0])).parent / "report.json"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error::DeprecationWarning:ddpm_jax", "-m", "ddpm_jax", "preflight"]
    done = subprocess.run(
        [*command, *map(str, args), "--out", str(out)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


# Slices by name


@pytest.mark.parametrize(
    ("name", "topology_name", "chips"),
    [
        ("v2-8", "v2:2x2", 4),
        ("v3-8", "v3:2x2", 4),
        ("v3-32", "v3:4x4", 16),
        ("v4-8", "v4:2x2x1", 4),
        ("v4-32", "v4:2x2x4", 16),
        ("v4-512", "v4:4x8x8", 256),
        ("v5litepod-4", "v5e:2x2", 4),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e-256", "v5e:16x16", 256),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-512", "v5p:4x8x8", 256),
        ("v6e-16", "v6e:4x4", 16),
    ],
)
def test_products_are_the_slices_that_their_maker_says_they_are(name, topology_name, chips):
    found = topology.find_slice(name)
    assert found.name == topology_name and topology.find_slice(topology_name) == found
    assert math.prod(map(int, found.name.split(":")[1].split("x"))) == chips


def test_every_grid_has_as_many_chips_as_its_product_says_and_the_next_one_more():
    for generation, kind in topology.GENERATIONS.items():
        for chips, grid in kind.grids.items():
            assert math.prod(map(int, grid.split("x"))) == chips
            which = topology.find_slice(f"{generation}:{grid}")
            assert which.product == f"{kind.product}-{chips * kind.cores}"
            after = topology.next_larger(which)
            assert after is None or int(after.partition("-")[2]) > chips * kind.cores
            assert (after is None) == (chips == max(kind.grids))


def test_unusual_grids_have_no_product():
    assert topology.find_slice("v5p:4x4x12") == topology.Slice("v5p:4x4x12", None, {})


@pytest.mark.parametrize("name", ["v5litepod-17", "v3-7", "v4-9", "h100-8", "v5e:4", "v5e:axb", "v9:2x2", "v5e", ""])
def test_unknown_slices_are_refused_and_the_known_ones_listed(name):
    with pytest.raises(ValueError, match=rf"unknown topology '{name}'; known are v2-8\|32.*v4:2x2x4"):
        topology.find_slice(name)


def test_without_the_compiler_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"libtpu .*pip install 'ddpm-jax\[tpu\]'"):
        topology.devices(topology.find_slice("v5e:2x2"))


# Wrong requests


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "name a config first"),
        (
            ["configs/cifar10.py"],
            "no file data/cifar10.npz; ddpm-jax prepare cifar10 --out data makes it. Without the data, ",
        ),
        (
            ["configs/cifar10.py", "--data.source", "npz:a.npz"],
            "no file a.npz. Without the data, give the shape of the images",
        ),
        (["configs/digits.py", "--shape", "8", "8"], "--shape must be H W C, or D H W C of volumes, got 8 8"),
        (["configs/digits.py", "--images", "5"], "--images 5 needs --shape H W C"),
        (["configs/digits.py", "--shape", "8", "0", "1"], "--shape must lie in [1, 65536], got (8, 0, 1)"),
        (["configs/digits.py", "--batch", "100"], "100 over 8; --batch 104 is 13 on each"),
        (["configs/digits.py", "--optim.accumulate", "3"], "batch of 8 cannot be cut into accumulate = 3 equal parts"),
        (["configs/digits.py", "--effort", "0"], "--effort needs --topology and must be in [-1, 1], got 0.0"),
        (["configs/digits.py", "--topology", "v5e:4x4", "--effort", "2"], "must lie in [-1, 1], got 2.0"),
        (["configs/digits.py", "--topology", "v3-8", "--devices", "2"], "--devices 2 is for this machine's CPU"),
        (["configs/digits.py", "--topology", "v5e:4"], "unknown topology 'v5e:4'"),
        (["configs/digits.py", "--out", "configs"], "--out must be a file, got the folder configs"),
    ],
)
def test_wrong_requests_are_refused(args, text, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.chdir(ROOT)
    assert cli.call(["preflight", *args]) == 2
    assert text in capsys.readouterr().err


# What a program says of itself


def test_operations_between_devices_are_counted_with_their_groups():
    devices, pairs = len(jax.devices()), [[i, i + 1] for i in range(0, len(jax.devices()), 2)]

    def body(x):
        whole = jax.lax.psum(x, "d")
        return jax.lax.psum(jnp.sin(whole) * x, "d", axis_index_groups=pairs), jax.lax.all_gather(x * 3, "d")

    text = jax.pmap(body, axis_name="d").lower(jnp.ones((devices, 4))).compile().as_text()
    assert set(compile_stats.find_collectives(text, devices)) == {
        compile_stats.Collective("all-reduce", 1, 1, devices),
        compile_stats.Collective("all-reduce", 1, devices // 2, 2),
        compile_stats.Collective("all-gather", 1, 1, devices),
    }


@pytest.mark.parametrize(
    ("groups", "found"),
    [("[2,8]<=[16]", (2, 8)), ("[1,16]<=[4,4]T(1,0)", (1, 16)), ("{}", (1, 16)), ("{{0,1,2},{3,4,5}}", (2, 3))],
)
def test_every_way_to_write_groups_is_read(groups, found):
    text = f"  %all-reduce.1 = (f32[3], f32[2]) all-reduce-start(%a, %b), replica_groups={groups}, to_apply=%add\n"
    text += "  ROOT %all-reduce-done.1 = (f32[3], f32[2]) all-reduce-done(%all-reduce.1)\n"
    assert compile_stats.find_collectives(text, 16) == [compile_stats.Collective("all-reduce", 1, *found)]


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("total memory required for HLO temporaries (16.64G) exceeds available HBM (15.75G).", 16.64, 15.75),
        ("total memory required for HLO temporaries (8.00T) exceeds available HBM (95.74G).", 8192, 95.74),
        ("Out of memory allocating 123 bytes", None, None),
    ],
)
def test_a_refusal_has_the_bytes_needed(message, needed, available):
    found = compile_stats.parse_out_of_memory(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, the {message}")
    for value, gib in zip(found, (needed, available), strict=True):
        assert value == (None if gib is None else round(gib * 2**30))


PATCHES = configs.Net(kind="patch_transformer", transformer=configs.PatchTransformer(2, 32, 1, 2))
WIDE = configs.Net(channels=128, channel_multipliers=(1,), num_res_blocks=1)
"""Wide enough for convolutions that a CPU computes by Winograd's algorithm, with fewer operations."""


@pytest.mark.parametrize("net", [None, PATCHES, WIDE], ids=["unet", "patches", "wide"])
def test_a_training_step_is_about_three_forward_passes(tiny, net):
    config = configs.load(tiny)
    config = dataclasses.replace(config, net=net or config.net)
    images = lowering.load_images(config, (), None)
    model = build(config, images.train.shape[1:], images.levels)
    params = lowering.train_state(model).params
    plain = dataclasses.replace(config, net=dataclasses.replace(config.net, dtype="bfloat16"))
    forward = jax.jit(lambda params, x, t: network(plain, 1).apply({"params": params}, x, t))
    x, t = jax.ShapeDtypeStruct((128, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((128,), jnp.int32)
    once = forward.lower(params, x, t).cost_analysis()["flops"]
    found = lowering.step_flops(model, images, 8)
    assert 2.8 < found / once < 3.6  # the rest: noise, dropout, optimizer, average
    assert lowering.step_flops(model, images, 16) == pytest.approx(found / 2, rel=0.05)


def test_a_checkpoint_takes_what_is_said_on_the_disk(tmp_path):
    """Random numbers compress as trained parameters and their moments do; zeros would not."""
    config = configs.load(ROOT / "configs" / "digits.py")
    images, rng = lowering.load_images(config, (), None), np.random.default_rng(0)
    model = build(config, images.train.shape[1:], images.levels)
    shapes = lowering.train_state(model)
    state = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape) + 1).astype(leaf.dtype), shapes)
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
    found = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert local_measurement.checkpoint_bytes(model) == pytest.approx(found, rel=0.05)


def test_a_run_takes_the_disk_of_the_checkpoints_it_keeps_and_of_the_one_being_written(tiny):
    config = dataclasses.replace(configs.load(tiny), steps=100, save_every=10, sample_every=0)
    images = lowering.load_images(config, (), None)
    one, few, many = (
        local_measurement.disk_bytes(build(dataclasses.replace(config, keep=keep), (8, 8, 1), 17), images)
        / local_measurement.checkpoint_bytes(build(config, (8, 8, 1), 17))
        for keep in (1, 3, 50)
    )
    assert few - one == pytest.approx(2) and many - few == pytest.approx(6)  # 2, 4 and all 10
    optim = dataclasses.replace(config.optim, ema_lengths=(0.05, 0.1))
    averaging, later = (
        build(dataclasses.replace(config, optim=optim, snapshot_every=every), (8, 8, 1), 17) for every in (30, 101)
    )
    params = sum(leaf.size for leaf in jax.tree.leaves(lowering.train_state(averaging).params))
    more = local_measurement.disk_bytes(averaging, images) - local_measurement.disk_bytes(later, images)
    assert more == 3 * 2 * 4 * params  # three snapshots of two averages


@pytest.mark.parametrize("together", [1, 4])
def test_images_that_are_read_ahead_are_those_of_two_calls(tiny, together):
    config = dataclasses.replace(configs.load(tiny), batch=64, data=configs.Data(stream=True), steps_per_call=together)
    images, order = lowering.load_images(config, (), None), data.EpochShuffle(from_seed(0), 1500)
    loader = device_loader.make_device_loader(
        images.train, order, 64, jax.devices()[:2], stream=True, steps_per_call=together
    )
    with contextlib.closing(loader.batches(0)) as batches:
        pixels = next(batches).pixels
    assert lowering.device_pixel_bytes(config, images, 2) == 2 * pixels.nbytes // 2


def test_previews_beside_a_sharded_update_take_the_whole_average_as_well(tiny):
    """It lies in shares during training, and no program's own memory tells."""
    config, images = configs.load(tiny), lowering.load_images(configs.load(tiny), (), None)

    def needed(shard_update):
        model = build(dataclasses.replace(config, shard_update=shard_update), (8, 8, 1), 17)
        train, sampler = compile_stats.Memory(9000, 0, 0, 0, 9000), compile_stats.Memory(300, 0, 0, 0, 700)
        stats = {
            name: compile_stats.CompileStats(memory, memory.peak, [], {}, 1.0, "")
            for name, memory in (("train", train), ("sampler", sampler))
        }
        target = report.Target(jax.devices()[:2], 1, None, None, None)
        found = report.Report("tiny", model, images, target, 0.0, stats)
        return found.bytes_during_training("sampler"), lowering.params_bytes(model)

    (whole, params), (shares, _) = needed(False), needed(True)
    assert (whole, shares) == (9400, 9400 + params)


# The devices at hand


@pytest.fixture(scope="module")
def compiled_text(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "programs"


@pytest.fixture(scope="module")
def local(tiny, compiled_text):
    out = tiny.parent / "reports" / "local.json"  # in a folder that is not there
    flags = ("--devices", 2, "--batch", 64, "--text", compiled_text, "--out", out)
    shown = run("-m", "ddpm_jax", "preflight", tiny, *flags).stdout
    return json.loads(out.read_text()), shown


def test_one_program_that_does_not_fit_is_status_1(tiny, monkeypatch):
    monkeypatch.setattr(report.Report, "fits", lambda self, name: name == "sampler")
    flags = ("--devices", 2, "--batch", 64, "--programs", "sampler", "train")
    shown = run("-m", "ddpm_jax", "preflight", tiny, *flags, status=1)
    assert "does not fit" in shown.stdout


def test_steps_that_fit_by_analysis_alone_are_status_7(tiny, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(local_measurement, "measure", full)
    flags = ("--devices", 2, "--batch", 64, "--programs", "train")
    shown = run("-m", "ddpm_jax", "preflight", tiny, *flags, status=7)
    assert "a training step of 32 images per device does not fit" in shown.stderr and "--net.remat" in shown.stderr


@pytest.mark.slow
def test_memory_by_analysis_is_what_the_process_takes(tiny):
    """Resident memory grows by what the analysis says, within 10 %: images, state and temporaries of both devices."""
    found = preflight(tiny, "--devices", 2, "--batch", 8192)[0]["measured"]
    if found["used"] is None:
        pytest.skip(f"memory cannot be measured: {found['how']}")
    assert found["analysis"] > 2e8  # far above what else a process allocates
    assert found["used"] == pytest.approx(found["analysis"], rel=0.1)


def test_the_report_of_a_local_run_is_consistent(local):
    report, shown = local
    train, config = report["programs"]["train"], configs.from_dict(report["settings"])
    memory = train["memory"]
    assert report["place"]["devices"] == 2 and report["place"]["topology"] is None
    assert train["collectives"] == [{"kind": "all-reduce", "count": 1, "groups": 1, "size": 2}]
    assert train["donated"] and "the state is donated" in shown
    # a device is given the state and the images: no more, and donates the state
    state = lowering.state_bytes(build(config, (8, 8, 1), 17))
    assert memory["donated"] == state
    assert memory["arguments"] == pytest.approx(state + report["images"]["number"] * 64, rel=0.02, abs=4 * 64)
    for name in ("sampler", "evaluation"):
        assert report["programs"][name]["fits"] and report["programs"][name]["memory"]["peak"] > 0
        # it runs beside what training keeps, of which it uses the parameters
        resident = report["programs"][name]["needed"] - report["programs"][name]["memory"]["peak"]
        assert resident == pytest.approx(memory["arguments"] - state / 4, rel=0.1)
    assert report["measured"]["steps_per_s"] > 0
    assert "1,000 steps take" in shown and "fits" in shown and "does not fit" not in shown


@pytest.mark.slow
def test_with_a_sharded_update_a_device_holds_its_share_of_the_state(tiny):
    report = preflight(tiny, "--devices", 2, "--batch", 64, "--shard-update", "--programs", "train")[0]
    train, model = report["programs"]["train"], build(configs.from_dict(report["settings"]), (8, 8, 1), 17)
    # parameters, and half of their average and of two moments
    assert lowering.device_state_bytes(model, 2) == pytest.approx(lowering.state_bytes(model) * 2.5 / 4, rel=1e-3)
    assert train["memory"]["donated"] == pytest.approx(lowering.device_state_bytes(model, 2), rel=0.01)
    assert {each["kind"] for each in train["collectives"]} == {"all-reduce", "reduce-scatter", "all-gather"}
    assert train["donated"] and report["measured"]["steps_per_s"] > 0


def test_the_text_of_each_program_is_kept_where_it_is_asked_for(local, compiled_text):
    assert {path.name for path in compiled_text.iterdir()} == {"train.txt", "sampler.txt", "evaluation.txt"}
    text = {path.stem: path.read_text() for path in compiled_text.iterdir()}
    for name, statistics in local[0]["programs"].items():
        reduces = sum(each["count"] for each in statistics["collectives"])
        assert (reduces > 0) == ("all-reduce" in text[name]) and "ENTRY" in text[name]


# TPUs that are not there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices", "hosts"), [("v5e:2x2", 4, 1), ("v5litepod-16", 16, 4), ("v6e-256", 256, 64)]
)
def test_gradients_are_averaged_over_all_devices_of_a_slice(tiny, name, devices, hosts):
    pytest.importorskip("libtpu")
    report, shown = preflight(tiny, "--topology", name, "--programs", "train", "sampler")
    train, target = report["programs"]["train"], report["place"]
    assert (target["devices"], target["hosts"]) == (devices, hosts) and "TPU" in target["kind"]
    assert train["collectives"] == [{"kind": "all-reduce", "count": 1, "groups": 1, "size": devices}]
    assert train["donated"] and train["fits"]
    config = configs.from_dict(report["settings"])
    state = lowering.state_bytes(build(config, (8, 8, 1), 17))
    assert state <= train["memory"]["donated"] <= train["memory"]["arguments"] <= train["memory"]["peak"]
    assert report["programs"]["sampler"]["collectives"] == []
    assert f"over all {devices} devices" in shown


@pytest.mark.slow
def test_at_the_compilers_usual_effort_the_time_of_a_step_is_estimated(tiny):
    pytest.importorskip("libtpu")
    flags = (tiny, "--topology", "v5e:1x1", "--programs", "train")
    report, shown = preflight(*flags, "--effort", 0)
    train = report["programs"]["train"]
    assert train["estimated_seconds"] == sum(train["cycles"].values()) / 1.5e9 > 0
    assert train["utilisation"] == report["flops"] / train["estimated_seconds"] / 197e12 < 1
    assert {"convolutions", "matrix products", "sums"} <= train["cycles"].keys()
    assert "M cycles by the compiler's estimate (" in shown and "of the peak in bfloat16" in shown
    assert "estimate" not in preflight(*flags)[1]


@pytest.mark.slow
def test_a_few_large_images_are_not_cut_into_strips(tiny, monkeypatch):
    """Which would take more memory, and several times as long; see `process.tpu`."""
    pytest.importorskip("libtpu")
    flags = (tiny, "--topology", "v5e:1x1", "--programs", "train", "--batch", 4, "--net.channels", 64)
    images = (
        "--shape",
        64,
        64,
        1,
        "--images",
        100,
        "--net.channel-multipliers",
        1,
        1,
        1,
        "--net.attention-resolutions",
    )
    whole = preflight(*flags, *images)[0]["programs"]["train"]["memory"]["temporaries"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", " ".join(f"--{flag}=true" for flag in tpu.DISABLED_FLAGS))
    assert whole < 0.8 * preflight(*flags, *images)[0]["programs"]["train"]["memory"]["temporaries"]


@pytest.mark.slow
def test_what_does_not_fit_is_a_result_and_what_is_proposed_fits(tiny):
    pytest.importorskip("libtpu")
    flags = ("--topology", "v5e:2x2", "--programs", "train", "--batch", 2**20)
    report, shown = preflight(tiny, *flags, status=1)
    train = report["programs"]["train"]
    assert train["needed"] > report["place"]["limit"] == pytest.approx(15.75 * 2**30)
    assert "does not fit" in shown and "Ran out of memory on HBM" in train["said"]
    assert "try --net.remat: the same step" in shown
    (proposed,) = [line.split()[2].rstrip(":") for line in shown.splitlines() if "try --optim.accumulate" in line]
    again = preflight(tiny, *flags, "--optim.accumulate", proposed)[0]["programs"]["train"]
    assert again["fits"] and again["needed"] < train["needed"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["v5e:4x4", "v4:2x2x4"])
@pytest.mark.parametrize(("name", "shape"), [("cifar10", (32, 32, 3)), ("celebahq256", (256, 256, 3))])
def test_the_recipes_of_the_paper_fit_on_sixteen_chips(tmp_path, name, shape, where):
    """Minutes for each.  What was found at another time stands in docs/preflight.md."""
    pytest.importorskip("libtpu")
    (tmp_path / "config.py").write_text((ROOT / "configs" / f"{name}.py").read_text())
    flags = ("--shape", *shape, "--images", 27_000, "--topology", where, "--programs", "train", "sampler")
    report, _ = preflight(tmp_path / "config.py", *flags)
    train = report["programs"]["train"]
    assert train["fits"] and train["donated"] and train["collectives"] and train["collectives_span_all"]
    assert report["programs"]["sampler"]["fits"] and report["programs"]["sampler"]["collectives"] == []
    assert report["place"]["devices"] == 16 and report["place"]["hosts"] == 4


@pytest.mark.slow
def test_remat_takes_less_memory_on_a_slice(tiny):
    pytest.importorskip("libtpu")
    flags = ("--topology", "v5e:2x2", "--programs", "train", "--batch", 4096, "--net.num-res-blocks", 3)
    whole, again = (preflight(tiny, *flags, flag)[0]["programs"]["train"] for flag in ("--net.no-remat", "--net.remat"))
    assert again["memory"]["peak"] < 0.75 * whole["memory"]["peak"]


@pytest.mark.slow
def test_images_that_fill_a_device_are_noticed_before_anything_is_compiled(tiny):
    pytest.importorskip("libtpu")
    flags = ("--shape", 8, 8, 1, "--images", 10**9, "--topology", "v6e-4", "--programs", "train")
    report, shown = preflight(tiny, *flags, "--data.stream", "False", status=1)
    assert report["programs"]["train"]["seconds"] == 0
    assert report["programs"]["train"]["needed"] == pytest.approx(64e9, rel=0.01)
    assert "at least 59.6" in shown
    assert "try --data.stream True: at present each device holds all images (59.60 GiB)" in shown
    report, shown = preflight(tiny, *flags)  # so many are streamed anyway
    assert report["programs"]["train"]["fits"] and "read ahead of each step, with 32 KiB on each device" in shown


@pytest.mark.slow
def test_a_slice_that_its_compiler_refuses(tiny):
    pytest.importorskip("libtpu")
    with pytest.raises(ValueError, match=r"libtpu refuses the topology 'v5e:3x3': .*INVALID_ARGUMENT.*known are v2-8"):
        topology.devices(topology.find_slice("v5e:3x3"))
