"""The README is a program: its notebook lines run, and the commands and files it names exist."""

import ast
import pathlib
import re
import shlex

import numpy as np
import pytest
import tyro
from run_programs import run

from ddpm_jax import config, data
from ddpm_jax.programs import cli, sample
from ddpm_jax.programs.evaluate import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


LANGUAGES = "README.md", "README.zh-CN.md"
CUT_SHORT = {
    "train": "--steps 2 --batch 8 --schedule.T 20 --net.channels 8 --net.channel-multipliers 1 1 --net.groups 4 "
    "--net.num-res-blocks 1 --net.attention-resolutions 7 --sampling.steps 4 --sampling.num 4 --sampling.tile 4 "
    "--evaluation.images 8 --evaluation.strata 2",
    "prepare": "", "sample": "", "evaluate": "",
}  # fmt: skip


@pytest.mark.slow
def test_the_notebook_lines_run_and_learn_something():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert "range(300)" in block
    names: dict = {}
    exec(compile(block.replace("range(300)", "range(40)"), "README.md", "exec"), names)
    assert np.isfinite(names["x"]).all()
    # an untrained network of v has a loss of about 1; forty steps bring it well below
    assert names["metrics"]["loss"] < 0.6
    assert names["x"].shape == (16, 8, 8, 1)


@pytest.fixture
def folder_of_a_reader(tmp_path):
    """The working directory of someone who has downloaded the data sets and has images of their own."""
    for name, side, channels in (("mnist", 28, 1), ("cifar10", 32, 3)):
        sizes = {"train": 60_000 if name == "mnist" else 50_000, "test": 10_000}
        arrays = {f"x_{part}": np.zeros((n, side, side, channels), np.uint8) for part, n in sizes.items()}
        (tmp_path / "data").mkdir(exist_ok=True)
        labels = {f"y_{part}": np.arange(n, dtype=np.uint8) % 10 for part, n in sizes.items()}
        np.savez(tmp_path / "data" / f"{name}.npz", **arrays, **labels)
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        data.write_image(tmp_path / "pictures" / f"{i}.png", random.integers(0, 256, (40, 36, 3), np.uint8), "png")
    np.savez(tmp_path / "images.npz", images=random.integers(0, 256, (12, 20, 20, 1), np.uint8))
    run("-m", "ddpm_jax", "prepare", "folder:pictures", "--name", "flowers", "--out", "sets", folder=tmp_path)
    return tmp_path


@pytest.mark.slow
def test_its_commands_run_one_after_the_other_cut_short(folder_of_a_reader):
    code_blocks = re.findall(r"^```\n(.*?)^```$", re.sub(r"```python.*?```", "", README, flags=re.S), re.S | re.M)
    lines = [line.partition("#")[0] for block in code_blocks for line in block.splitlines()]
    commands = [command.strip() for line in lines for command in line.split("&&") if "ddpm-jax " in command]
    assert len(commands) >= 11
    for command in commands:
        _, name, *words = shlex.split(command.replace("tfds:NAME", "tfds:flowers@sets"))
        run("-m", "ddpm_jax", name, *words, *CUT_SHORT[name].split(), folder=folder_of_a_reader)
    assert (folder_of_a_reader / "samples" / "grid.png").exists()
    assert {path.name for path in (folder_of_a_reader / "runs").iterdir()} == {
        "text", "digits", "mnist", "cifar10", "mine", "arrays", "flowers",
    }  # fmt: skip


def test_both_languages_have_the_same_lines_of_code():
    english, chinese = (
        [re.sub(r" *#.*", "", block) for block in re.findall(r"```.*?```", (ROOT / name).read_text(), re.S)]
        for name in LANGUAGES
    )
    assert english == chinese


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_files_it_names_exist(name):
    text = (ROOT / name).read_text()
    for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text):
        assert (ROOT / path).exists(), path


def test_its_commands_are_the_makefile_s_and_the_programs_own():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`make ([\w-]+)", README):
        assert re.search(rf"^{command}:", makefile, re.M), command
    for command in re.findall(r"ddpm-jax ([a-z]+)", README):
        assert command in cli.COMMANDS, command


def test_its_configs_can_be_loaded():
    names = re.findall(r"ddpm-jax train ([a-z]\w*(?::\w+)?) ", README)
    assert {"digits", "mnist", "cifar10"} <= set(names)
    for name in names:
        config.load(name)


def test_its_samples_are_asked_for_by_the_flags_that_there_are():
    pages = [README, *((ROOT / "docs" / f"{name}.md").read_text() for name in ("quickstart", "samplers", "editing"))]
    lines = [line for page in pages for line in re.findall(r"^ddpm-jax sample ([^#\n]*)(?<!\\)$", page, re.M)]
    assert len(lines) >= 8
    for line in lines:
        tyro.cli(sample.Arguments, args=shlex.split(line))


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_the_evaluations_it_names_have_these_flags(page):
    """Each `ddpm-jax evaluate RUN COMMAND --flags` line is one that the program would take."""
    lines = re.findall(r"^ddpm-jax evaluate (?!RUN)(\S+) (\w+)([^\n#]*)", (ROOT / page).read_text(), re.M)
    assert lines
    for _, command, flags in lines:
        tyro.cli(COMMANDS[command][0], args=flags.split())


def test_every_command_of_the_evaluation_is_in_its_page():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for command in COMMANDS:
        assert f"`{command}`" in page, command


def test_the_pictures_of_the_evaluation_exist():
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "docs" / "evaluation.md").read_text())
    assert len(links) >= 8
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize("name", LANGUAGES)
def test_its_numbers_are_those_of_the_pages(name):
    """The peak of a TPU, the minutes of `mnist`, and the speed relative to diffusers, two JAX versions."""
    text, performance, training = (
        (ROOT / page).read_text() for page in (name, "docs/performance.md", "docs/training.md")
    )
    (share,) = re.findall(r"49 ms a step on a v5e, (\d+ %) of the peak", performance)
    assert re.findall(r"(\d+ %)", text) == [share]
    (minutes,) = re.findall(r"\| `mnist` \|.* (\d+) minutes", training)
    assert set(re.findall(r"(?:; |约 ?|parameters, )(\d+) (?:minutes|分钟)", text)) == {minutes}
    rows = re.findall(r"\| relative to diffusers, jax [\d.]+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", performance)
    assert len(rows) == 4
    numbers = re.findall(r"(?<![\d.])\d\.\d\d(?!\.?\d)", text)  # in the order training, sampling of each version
    for row in rows:
        assert any(tuple(numbers[i : i + 3]) == row for i in range(len(numbers))), row


def test_messages_name_commands_that_an_installed_wheel_has_too():
    named = []
    for path in (ROOT / "ddpm_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
        named += [(path.name, text.value) for text in texts if re.search(r"\b(train|sample)\.py\b", str(text.value))]
    assert named == []
