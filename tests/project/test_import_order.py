"""How the library is built: who may import whom, how long a file may be, what an import costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

import ddpm_jax

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
ROOT = PACKAGE.parent
MATHEMATICS = (
    "keys", "schedules", "gaussian", "denoisers", "likelihood", "losses", "samplers", "editing", "guidance",
    "measurements",
)  # fmt: skip
NETWORKS = ("models",)
MACHINERY = (
    "training", "posthoc_ema", "config", "model", "process", "data", "conditions", "checkpoint", "tracking",
    "metrics", "pipeline", "trainer", "convert", "evaluate", "preflight", "conformance",
    "programs", "__main__",
)  # fmt: skip
ORDER = (*MATHEMATICS, *NETWORKS, *MACHINERY)
"""A module imports only from modules before it."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: pathlib.Path, top_only: bool = False) -> set[str]:
    """The dotted names that a file imports, `from a import b` as a.b."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@each_file
def test_imports_go_down_the_list(path):
    own = module_of(path)
    assert own in ORDER, f"{own} has no place in the order"
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_jax.")}
    assert inner - {"__version__"} <= {*ORDER[: ORDER.index(own)], own}


@each_file
def test_the_mathematics_needs_jax_and_numpy_alone_and_flax_is_for_what_follows(path):
    outer = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"ddpm_jax"}
    if module_of(path) in MATHEMATICS:
        assert outer <= {"jax", "numpy"}
    else:
        assert not {name.split(".")[0] for name in imports(path, top_only=True)} & {"tensorflow", "torch"}


def test_experiments_import_benchmarks_and_nothing_imports_experiments():
    folders = ("benchmarks", "scripts", "configs", "ddpm_jax")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        assert not [name for name in imports(path) if name.split(".")[0] == "experiments"], path


@pytest.mark.parametrize("path", [*FILES, ROOT / "train.py", ROOT / "sample.py"], ids=lambda path: path.name)
def test_no_file_is_longer_than_380_lines(path):
    assert len(path.read_text().splitlines()) <= 380


@pytest.mark.parametrize("path", [*FILES, ROOT / "train.py", ROOT / "sample.py"], ids=lambda path: path.name)
def test_text_is_utf_8_in_every_file_that_is_read_or_written(path):
    for call in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(call, ast.Call):
            name = ast.unparse(call.func)
            text = name.endswith((".read_text", ".write_text"))
            if name == "open" or name.endswith("path.open"):
                text = not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in call.args)
            assert not text or "encoding" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


def test_no_module_is_named_after_nothing():
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "base", "helpers", "core", "misc"}


def test_importing_the_package_brings_nothing_heavy():
    heavy = {"orbax", "tensorflow_datasets", "tensorflow", "torch", "tyro", "PIL"}
    code = f"import ddpm_jax, sys; print(*({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "\n"


def test_every_public_name_can_be_had_and_others_are_refused():
    for name in ddpm_jax.__all__:
        assert getattr(ddpm_jax, name) is not None
    with pytest.raises(AttributeError, match="module 'ddpm_jax' has no attribute 'diffusion'"):
        ddpm_jax.diffusion  # noqa: B018
