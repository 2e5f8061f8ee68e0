"""Configs: the original's values, and that nothing wrong gets past reading."""

import dataclasses
import json
import operator
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_programs
import tyro

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import losses, samplers, schedules
from ddpm_jax.config import fields, flags, old_names
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build, check, denoiser_options, network, noise_schedule, optimizer
from ddpm_jax.programs import cli
from ddpm_jax.programs.convert import COMMANDS as CONVERT
from ddpm_jax.programs.evaluate import COMMANDS as EVALUATE

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("digits", "mnist", "cifar10", "celebahq256", "lsun_church256", "lsun_bedroom256")


def load(name):
    return configs.load(ROOT / "configs" / name)


# hojonathanho's scripts/run_cifar.py, run_celebahq.py and run_lsun.py, and appendix B of the paper
ORIGINAL = {
    "cifar10.py": {
        "steps": 800_000, "batch": 128, "data.flip": True,
        "net.channels": 128, "net.channel_multipliers": (1, 2, 2, 2), "net.num_res_blocks": 2,
        "net.attention_resolutions": (16,),
        "net.dropout": 0.1, "net.heads": 1, "net.groups": 32, "net.resample_with_conv": True,
        "optim.learning_rate": 2e-4, "sampling.variance_mix": 1.0,
    },
    "celebahq256.py": {
        "steps": 500_000, "batch": 64, "data.flip": True,
        "net.channels": 128, "net.channel_multipliers": (1, 1, 2, 2, 4, 4), "net.num_res_blocks": 2,
        "net.attention_resolutions": (16,),
        "net.dropout": 0.0, "net.heads": 1, "net.groups": 32, "net.resample_with_conv": True,
        "optim.learning_rate": 2e-5, "sampling.variance_mix": 0.0,
    },
}  # fmt: skip
ORIGINAL["lsun_church256.py"] = ORIGINAL["celebahq256.py"] | {"steps": 1_200_000}
ORIGINAL["lsun_bedroom256.py"] = ORIGINAL["celebahq256.py"] | {"steps": 2_400_000, "data.flip": False}
EVERYWHERE = {
    "schedule.kind": "linear", "schedule.T": 1000, "schedule.beta_1": 1e-4, "schedule.beta_T": 0.02,
    "loss.kind": "simple", "loss.predicts": "eps", "loss.weight": "none", "loss.stratified": False,
    "optim.warmup": 5000, "optim.clip": 1.0, "optim.b1": 0.9, "optim.b2": 0.999, "optim.eps": 1e-8,
    "optim.ema_decay": 0.9999, "optim.ema_warmup": False, "optim.decay": 0,
    "sampling.sampler": "ancestral", "sampling.steps": 1000, "sampling.clip": True,
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_recipes_have_the_original_values(name):
    config = load(name)
    for field, value in (EVERYWHERE | ORIGINAL[name]).items():
        found = config
        for part in field.split("."):
            found = getattr(found, part)
        assert found == value, field


def test_the_defaults_are_those_of_cifar10():
    config = configs.Config(data=configs.Data(flip=True))
    for field, value in (EVERYWHERE | ORIGINAL["cifar10.py"]).items():
        assert operator.attrgetter(field)(config) == value, field


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar10.py", 35_746_307),
        ("celebahq256.py", 113_673_219),
        pytest.param("lsun_bedroom256.py:large", 255_677_955, marks=pytest.mark.slow),
    ],
)
def test_the_original_networks_have_the_original_size(name, count):
    net = network(load(name), channels=3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3) if "cifar" in name else (1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(net.init, from_seed(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_sound_and_survives_json(name):
    config = load(f"{name}.py")
    check(config)
    assert configs.from_dict(json.loads(configs.to_json(config))) == config


def test_the_hybrid_variant_doubles_the_outputs():
    assert network(load("cifar10.py:hybrid"), channels=3).net.out_channels == 6
    check(load("cifar10.py:hybrid"))


def test_differences_name_the_fields():
    base = load("digits.py")
    other = dataclasses.replace(base, batch=32, net=dataclasses.replace(base.net, channels=8))
    assert configs.differences(base, other) == [f"batch: {base.batch} -> 32", f"net.channels: {base.net.channels} -> 8"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"stepz": 3}, "unknown field 'stepz'; did you mean 'steps'"),
        ({"optim": {"learning_rte": 1.0}}, r"unknown field optim\.'learning_rte'; did you mean 'learning_rate'"),
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"net": 3}, "net must be an object with fields, got 3"),
        ({"loss": {"predicts": "noise"}}, r"loss\.predicts must be one of 'eps', 'x0', 'v', 'mean', got 'noise'"),
        ([], r"a config must be an object with fields, got \[\]"),
        ({"net": {"channel_multipliers": 2}}, r"net\.channel_multipliers must be a list, got 2"),
        ({"optim": {"clip": "hard"}}, r"optim\.clip must be float \| None, got 'hard'"),
    ],
)
def test_values_that_are_not_a_config(values, text):
    with pytest.raises(ValueError, match=text):
        configs.from_dict(values)


def test_an_integer_will_do_where_a_number_is_wanted():
    rate = configs.from_dict({"optim": {"learning_rate": 1}}).optim.learning_rate
    assert type(rate) is float and rate == 1


def test_the_optimizer_is_as_every_field_says():
    """Adam by hand, of gradients of which some are clipped; the rate rises for two steps and falls until the sixth."""
    optim = configs.Optim(learning_rate=0.1, warmup=2, decay=6, clip=0.5, b1=0.8, b2=0.9, eps=1e-3)
    rule = optimizer(configs.Config(steps=6, optim=optim))
    gradients = np.array([0.7, -0.2, 0.3, -0.9, 0.1], np.float32)

    @jax.jit
    def updates(gradients):
        return jax.lax.scan(lambda state, g: rule.update(g, state)[::-1], rule.init(gradients[0]), gradients)

    m, v, expected = 0.0, 0.0, []
    for n, g in enumerate(np.clip(gradients.astype(np.float64), -0.5, 0.5)):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        rate = 0.1 * (n / 2 if n < 2 else (1 + np.cos(np.pi * (n - 2) / 4)) / 2)
        expected.append(-rate * (m / (1 - 0.8 ** (n + 1))) / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-3))
    np.testing.assert_allclose(updates(gradients)[1], expected, rtol=1e-4, atol=1e-8)


def test_a_prediction_is_scaled_before_it_is_clipped():
    schedule = configs.Schedule(T=20, beta_1=0.005, beta_T=0.6)
    config = configs.Config(schedule=schedule, sampling=configs.Sampling(steps=20, eps_scale=1.25))
    model = build(config, (40,), 256)
    column = model.schedule
    rng, t = np.random.default_rng(0), np.array([3, 9, 16])
    x_t, out = rng.normal(size=(2, 3, 40)).astype(np.float32)
    found = jax.jit(model.denoiser_of(lambda x, t: jnp.asarray(out)))(x_t, t)
    signal, noise = (np.asarray(part, np.float64)[t][:, None] for part in (column.signal, column.noise))
    x0 = (x_t - noise * (out / 1.25)) / signal
    assert 0.1 < (abs(x0) > 1).mean() < 0.9
    np.testing.assert_allclose(found.x0, np.clip(x0, -1, 1), atol=1e-5)


def test_the_space_of_the_loss_is_that_of_its_simple_part():
    """Squared errors of x_0 and v have the ratio 1 + SNR; the bound stays, and its own space changes no bit."""
    rng, t = np.random.default_rng(0), np.array([1, 50, 500, 1000])
    x0 = rng.uniform(-1, 1, (4, 3)).astype(np.float32)
    keys = jax.random.split(from_seed(0), 4)
    names = ("predicted", "x0", "v")
    models = [build(configs.Config(loss=configs.Loss("hybrid", "x0", space=name)), (3,), 256) for name in names]

    @jax.jit
    def found():
        schedule, net = models[0].schedule, lambda x, t: jnp.concatenate([0.5 * x, 0.1 * x], -1)
        error = losses.simple_loss(keys, schedule, lambda x, t: 0.5 * x, x0, predicts="x0", t=t)
        return [model.example_loss(keys, schedule, net, x0, t) for model in models], error, jnp.exp(schedule.log_snr[t])

    (plain, same, in_v), error, snr = found()
    np.testing.assert_array_equal(same, plain)
    assert (np.asarray(plain) > np.asarray(error)).all()
    np.testing.assert_allclose(in_v - plain, snr * error, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 0}, r"batch must lie in \[1, 1048576\], got 0"),
        ({"sample_every": -1}, r"sample_every must lie in \[0, 2147483647\], got -1"),
        ({"schedule": {"kind": "jsd"}}, "'jsd' leaves none: an x_0 cannot be had from the noise there; predict 'v'"),
        ({"schedule": {"kind": "linear", "beta_T": 1.0}}, "some signal at t = T"),
        (
            {"schedule": {"zero_terminal_snr": True}},
            "schedule.kind 'linear' with zero_terminal_snr leaves none: an x_0",
        ),
        ({"loss": {"learned_variance": True}}, "learned_variance needs loss.kind 'hybrid' or 'variational'"),
        ({"loss": {"kind": "variational", "weight": "p2"}}, "'p2' has no meaning for loss.kind 'variational'"),
        ({"loss": {"kind": "variational", "space": "v"}}, "loss.space 'v' has no meaning for loss.kind 'variational'"),
        ({"loss": {"weight": "snr", "space": "x0"}}, "loss.space 'x0' and loss.weight 'snr' exclude each other"),
        ({"sampling": {"variance_mix": 1.5}}, r"must lie in \[0, 1\], got 1.5"),
        ({"sampling": {"steps": 2000}}, r"sampling\.steps must be at most schedule\.T, 1000, got 2000"),
        ({"sampling": {"threshold": 101.0}}, r"sampling.threshold must lie in \[0, 100\], got 101.0"),
        ({"sampling": {"eps_scale": 0.0}}, r"sampling.eps_scale must lie in \(0, 1000\], got 0.0"),
        (
            {"sampling": {"eps_scale": 1.1}, "schedule": {"kind": "jsd"}, "loss": {"predicts": "v"}},
            "sampling.eps_scale 1.1 needs some signal at t = T, schedule.kind 'jsd' leaves none",
        ),
        ({"sampling": {"tile": -1}}, r"sampling.tile must lie in \[0, 65536\], got -1"),
        ({"steps_per_call": 0}, r"steps_per_call must lie in \[1, 10000\], got 0"),
        ({"steps_per_call": 3}, "steps must be a multiple of steps_per_call, got 800000 and 3; the nearest is 800001"),
        ({"steps_per_call": 32}, "log_every must be a multiple of steps_per_call, got 100 and 32; the nearest is 96"),
        ({"sampling": {"sampler": "analytic"}}, "'analytic' needs the errors of a trained network: train with another"),
        ({"optim": {"ema_decay": 1.0}}, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"optim": {"ema_lengths": (0.05, 0.3)}}, r"optim.ema_lengths must lie in \(0, 0.2886\], got \(0.05, 0.3\)"),
        ({"optim": {"ema_lengths": (0.1, 0.1)}}, r"ema_lengths must differ from each other, got \(0.1, 0.1\)"),
        (
            {"steps": 9000, "optim": {"ema_lengths": (0.1,)}},
            "snapshot_every must be at most steps, 9000, with optim.ema_lengths, got 25000: 30 to 60 snapshots",
        ),
        (
            {"steps_per_call": 2, "snapshot_every": 25, "optim": {"ema_lengths": (0.1,)}},
            "snapshot_every must be a multiple of steps_per_call, got 25 and 2",
        ),
        ({"steps": 10, "optim": {"warmup": 5, "decay": 9}}, "decay must be 0 .* or at least steps, 10, .*, 5, got 9"),
        ({"steps": 10, "optim": {"warmup": 20, "decay": 15}}, "and more than optim.warmup, 20, got 15: afterwards"),
        ({"steps": 10, "optim": {"decay": -1}}, r"optim.decay must lie in \[0, 2147483647\], got -1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is_compiled(changes, text):
    with pytest.raises(ValueError, match=text):
        check(configs.from_dict(changes))


@pytest.mark.parametrize(
    ("shape", "platform", "tile"),
    [
        ((32, 32, 3), "tpu", 256), ((256, 256, 3), "tpu", 4), ((8, 8, 1), "tpu", 256), ((1024, 1024, 3), "gpu", 1),
        ((32, 32, 3), "cpu", 16), ((28, 28, 1), "cpu", 16), ((8, 8, 1), "cpu", 32), ((16, 16, 16, 1), "cpu", 4),
    ],
)  # fmt: skip
def test_tiles_suit_the_device_unless_they_are_said(shape, platform, tile):
    assert build(configs.Config(), shape, 256).tile_size(platform) == tile
    assert build(configs.Config(sampling=configs.Sampling(tile=7)), shape, 256).tile_size(platform) == 7


def test_results_of_other_refinements_have_other_names():
    # by these a results folder tells apart what must not be taken for one another; the default's name stays as it was
    options_found = [
        denoiser_options(configs.from_dict({"sampling": changes}))
        for changes in (
            {},
            {"clip": False},
            {"threshold": 99.5},
            {"eps_scale": 1.02},
            {"threshold": 99.5, "clip": False},
        )
    ]
    assert options_found[0] == {"clip": True} and options_found[1] == {"clip": False}
    assert options_found[2] == options_found[4] == {"threshold": 99.5} and options_found[3] == {
        "eps_scale": 1.02,
        "clip": True,
    }


def test_a_schedule_without_terminal_signal_is_fine_for_v():
    check(configs.from_dict({"schedule": {"kind": "jsd"}, "loss": {"predicts": "v"}}))
    rescaled = configs.from_dict({"schedule": {"zero_terminal_snr": True}, "loss": {"predicts": "v"}})
    check(rescaled)
    assert float(noise_schedule(rescaled).signal[-1]) == 0


def test_spacings_of_configs_are_those_of_samplers():
    assert fields.Spacing == samplers.Spacing


@pytest.mark.parametrize("spacing", samplers.Spacing.__args__)
def test_every_spacing_can_be_said_in_a_config_and_to_a_program(spacing):
    sampling = configs.from_dict({"sampling": {"spacing": spacing, "steps": 10}}).sampling
    schedule = configs.Schedule("cosine", T=20)
    found = build(configs.Config(schedule=schedule, sampling=sampling), (8, 8, 1), 17).times
    np.testing.assert_array_equal(found, samplers.times(schedules.cosine(20), 10, spacing=spacing))
    assert tyro.cli(flags.SamplingOptions, args=["--spacing", spacing]).overrides() == {"spacing": spacing}


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*nowhere\.py; .* holds: no config"):
        configs.load(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").write_text("other = 3\n")
    with pytest.raises(ValueError, match=r"must define `config = Config\(\.\.\.\)`; it defines: no Config"):
        configs.load(tmp_path / "empty.py")
    with pytest.raises(ValueError, match=r"must define `tiny = .*it defines: config, bfloat16, hybrid"):
        configs.load(f"{ROOT}/configs/cifar10.py:tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = [2\n", r"broken\.py, line 2: SyntaxError: '\[' was never closed"),
        ("x = 1\ny = x.z\n", r"broken\.py, line 2: AttributeError: 'int' object has no attribute 'z'"),
        ("from ddpm_jax.config import Nets\n", r"broken\.py, line 1: ImportError: cannot import name 'Nets'"),
        ("\0", r"broken\.py.*: .*null bytes"),
    ],
)
def test_files_that_cannot_be_run_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        configs.load(tmp_path / "broken.py")


def test_a_file_is_read_as_it_is_now_and_leaves_nothing_beside_it(tmp_path):
    for steps in (1, 2, 3):  # of one size, in one second
        (tmp_path / "a.py").write_text(f"from ddpm_jax.config import Config\n\nconfig = Config(steps={steps})\n")
        assert configs.load(tmp_path / "a.py").steps == steps
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]


def test_a_file_may_define_dataclasses_of_postponed_annotations(tmp_path):
    (tmp_path / "later.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom typing import ClassVar\n"
        "from ddpm_jax.config import Config\n\n\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n"
        "    unit: ClassVar[int] = 5\n    steps: int = 7\n\n\nconfig = Config(steps=Mine().steps)\n"
    )
    assert configs.load(tmp_path / "later.py").steps == 7


def test_a_file_may_import_what_lies_beside_it_as_it_is_now(tmp_path):
    text = "from ddpm_jax.config import Config\nfrom sizes.large import STEPS\n\nconfig = Config(steps=STEPS)\n"
    before = list(sys.path)
    for folder, steps in (("a", 1), ("a", 2), ("b", 3)):
        (tmp_path / folder / "sizes").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "sizes" / "__init__.py").write_text("")
        (tmp_path / folder / "sizes" / "large.py").write_text(f"STEPS = {steps}\n")
        (tmp_path / folder / "mine.py").write_text(text)
        assert configs.load(tmp_path / folder / "mine.py").steps == steps
        assert sorted(path.name for path in (tmp_path / folder).rglob("*.py*")) == [
            "__init__.py",
            "large.py",
            "mine.py",
        ]
    assert sys.path == before and not {"sizes", "sizes.large"} & set(sys.modules)
    shutil.rmtree(tmp_path / "b" / "sizes")
    with pytest.raises(ValueError, match=r"mine\.py, line 2: ModuleNotFoundError: No module named 'sizes'"):
        configs.load(tmp_path / "b" / "mine.py")


def test_a_damaged_config_of_a_run_is_named(tmp_path):
    path = tmp_path / "config.json"
    for text in (configs.to_json(configs.Config())[:-20], "[" * 100_000, '{"steps": "many"}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"config\.json is not a config, or damaged: "):
            configs.read(path)
    path.write_text(configs.to_json(configs.Config(steps=7)))
    assert configs.read(path).steps == 7


def run_python(*args):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_lists_every_field_with_its_default_and_without_jax():
    shown = run_python("train.py", "configs/digits.py", "--help")
    assert shown.returncode == 0
    for field in dataclasses.fields(configs.Optim):
        assert f"--optim.{field.name.replace('_', '-')}" in shown.stdout
    assert "--batch" in shown.stdout and "128" in shown.stdout
    assert "jax" not in run_python("-X", "importtime", "train.py", "--help").stderr.replace("ddpm_jax", "")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("train.py", "configs/digits.py", "--workdir", ""), "--workdir"),
        (("train.py", "configs/digits.py", "--workdir", "x", "--init-from="), "--init-from"),
        (("sample.py", ""), "an argument"),
        (("sample.py", "run", "--inpaint", "", "--mask", "m.png"), "--inpaint"),
        (("sample.py", "run", "--init-image="), "--init-image"),
        (("sample.py", "run", "--interpolate", "a.png", " "), "--interpolate"),
        (("sample.py", "run", "--verify", ""), "--verify"),
        (("-m", "ddpm_jax", "evaluate", "", "report"), "an argument"),
        (("-m", "ddpm_jax", "evaluate", "run", "samples", "--samples", ""), "--samples"),
        (("-m", "ddpm_jax", "convert", "from", "plain", "x", "--workdir", ""), "--workdir"),
        (("-m", "ddpm_jax", "prepare", "digits", "--name", "no", "--out", ""), "--out"),
        (("-m", "ddpm_jax", "preflight", "configs/digits.py", "--topology", ""), "--topology"),
        (("-m", "ddpm_jax", "replay", ""), "an argument"),
        (("-m", "ddpm_jax", "conformance", ""), "an argument"),
    ],
)
def test_an_empty_word_is_refused_by_every_program(words, flag):
    """A shell makes one of a variable that is not set."""
    shown = run_programs.run(*words, status=2)
    assert f"{flag} is empty: leave it out, or check that its shell variable is set" in shown.stderr


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("train.py",), ""),
        (("sample.py",), "RUN"),
        (("-m", "ddpm_jax", "convert", "from", "openai"), "FILE"),
        (("-m", "ddpm_jax", "convert", "to", "plain"), "RUN OUT"),
        (("-m", "ddpm_jax", "evaluate", "run", "likelihood"), ""),
        (("-m", "ddpm_jax", "evaluate", "run", "table"), ""),
        (("-m", "ddpm_jax", "prepare"), "SOURCE"),
        (("-m", "ddpm_jax", "preflight"), ""),
        (("-m", "ddpm_jax", "replay"), "RECORD"),
        (("-m", "ddpm_jax", "conformance"), ""),
    ],
)
def test_help_names_arguments_and_says_a_default_once(words, arguments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # in a wider one, two panels stand beside each other
    shown = " ".join(re.sub("[│─╭╮╰╯]", " ", run_programs.run(*words, "--help").stdout).split())
    assert arguments in shown.partition("(required)")[0]
    assert not re.search(r"\] STR\b|__tyro", shown)
    assert not re.search(r"\(default: [^()]*\)\.? \(default: None\)", shown)
    hosts = shown.count("--coordinator STR")  # whose options are those of a module without command lines
    assert words[-1] in ("train.py", "preflight") or shown.count("(default: None)") == 3 * hosts


def test_help_imports_nothing_heavy():
    """So that it takes a fraction of a second."""
    commands = [[name] for name in cli.COMMANDS if name not in ("evaluate", "convert")]
    commands += [["evaluate", "run", name] for name in EVALUATE] + [["convert", *words] for words in CONVERT]
    code = (
        "import contextlib, sys\nfrom ddpm_jax.programs import cli\n"
        f"for words in {[[], *commands]}:\n  with contextlib.suppress(SystemExit): cli.call([*words, '--help'])\n"
        "print(len(sys.modules), {'jax', 'numpy', 'flax', 'orbax'} & set(sys.modules))"
    )
    assert run_programs.run_process("-c", code).stdout.endswith(" set()\n")


def test_a_command_that_is_not_there_is_named():
    assert "there is no command 'trian'" in run_programs.run("trian", status=2).stderr
    assert "usage: ddpm-jax COMMAND" in run_programs.run("", status=2).stderr
    assert run_programs.run("--version").stdout == f"ddpm_jax {ddpm_jax.__version__}\n"


def test_a_config_of_the_library_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load("digits") == configs.load(ROOT / "configs" / "digits.py")
    assert configs.load("mnist:wide") == configs.load(f"{ROOT}/configs/mnist.py:wide")
    pathlib.Path("digits").write_text("from ddpm_jax.config import Config\nconfig = Config(steps=7)\n")
    assert configs.load("digits").steps == 7  # a file of one's own comes first
    with pytest.raises(FileNotFoundError, match=r"digits\.py"):
        configs.load("nothing")


def test_help_can_be_printed_in_ascii():
    """conformance has no option, and does not begin to measure."""
    shown = run_programs.run_process("-m", "ddpm_jax", "conformance", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert "usage: ddpm-jax conformance" in shown.stdout


def test_a_command_before_its_run_is_said():
    shown = run_programs.run("-m", "ddpm_jax", "evaluate", "likelihood", "runs/a", "--variance-mix", "0", status=2)
    assert "evaluate: the run comes first: runs/a likelihood --variance-mix 0" in shown.stderr
    shown = run_programs.run("-m", "ddpm_jax", "evaluate", "runs/a", "likelyhood", status=2)
    assert "evaluate: there is no command 'likelyhood'" in shown.stderr


def test_an_empty_text_is_one_that_tells_nothing():
    words = ["run", "--text", "", "a cat", "--out", "x"]
    assert flags.check_words(words) == words


def test_a_typing_error_gets_a_hint():
    wrong = run_programs.run("train.py", "configs/digits.py", "--workdir", "x", "--optim.learning-rte", "1", status=2)
    assert "learning-rate" in wrong.stdout + wrong.stderr


def test_a_missing_config_is_named():
    wrong = run_programs.run("train.py", "configs/nothing.py", "--workdir", "x", status=2)
    assert "no config file configs/nothing.py" in wrong.stderr and "digits.py" in wrong.stderr
    assert "name a config first" in run_programs.run("train.py", "--workdir", "x", status=2).stderr


def test_fields_are_read_under_their_former_names(tmp_path):
    """As the config.json of an older run has them."""
    net = {"multipliers": [1, 2], "blocks": 1, "attention_at": [4], "time_joins": "scale_shift", "resample_by": "block"}
    old = {
        "net": {**net, "conventions": {"eps": 1e-5}},
        "condition": {"drop": 0.2, "coarse": 2},
        "sampling": {"mix": 0.5},
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    compat = configs.CompatOptions(eps=1e-5)
    assert configs.read(tmp_path / "config.json") == configs.Config(
        net=configs.Net(
            channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), time_conditioning="scale_shift",
            resample="block", compat=compat,
        ),
        condition=configs.Condition(dropout=0.2, super_resolution_factor=2),
        sampling=configs.Sampling(variance_mix=0.5),
    )  # fmt: skip
    with pytest.raises(ValueError, match="'blocks' is the former name of 'num_res_blocks', and both are given"):
        configs.from_dict({"net": {"blocks": 1, "num_res_blocks": 2}})


def test_former_names_stand_for_fields_that_there_are_and_are_none_themselves():
    classes = (configs.Net, configs.Condition, configs.Sampling, flags.EditOptions)
    assert {cls.__name__ for cls in classes} == set(old_names.OLD_NAMES)
    for cls in classes:
        fields, renamed = {field.name for field in dataclasses.fields(cls)}, old_names.OLD_NAMES[cls.__name__]
        assert set(renamed.values()) <= fields and not fields & set(renamed)
