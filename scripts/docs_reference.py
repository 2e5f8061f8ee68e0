"""Pages of the documentation that are made from the code: API, command line, config.

`scripts.docs_hooks` puts them into the site; this module needs neither mkdocs nor a network.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import pathlib
import re
import textwrap
import typing
from collections.abc import Iterator
from unittest import mock

import ddpm_jax
from ddpm_jax.config import fields, ranges
from ddpm_jax.programs import cli, convert, evaluate

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_jax"
LAYERS = {
    "Mathematics": (
        "keys", "schedules", "gaussian", "denoisers", "likelihood", "losses", "samplers", "editing", "guidance",
        "measurements",
    ),
    "Networks and training step": ("models", "training", "posthoc_ema"),
    "Configs, files and devices": (
        "config", "model", "process", "data", "conditions", "checkpoint", "tracking", "metrics",
    ),
    "Programs": ("pipeline", "trainer", "convert", "evaluate", "preflight", "conformance", "programs"),
}  # fmt: skip
"""The pages of the API, in the import order of docs/design.md: a page for each module or folder of ddpm_jax."""


WIDTH = 78  # characters of a help text's lines


def modules() -> dict[str, pathlib.Path]:
    """The public modules of ddpm_jax with their files, sorted."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return found


def public_names(path: pathlib.Path) -> list[str]:
    """The functions, classes and methods that a module defines under a public name, as "f", "C", "C.m"."""
    return list(_definitions(ast.parse(path.read_text()).body))


def _definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{prefix}{node.name}.")


def api_pages() -> dict[str, str]:
    """Markdown of the API by page name: each module's docstring and members, to be filled in by mkdocstrings.

    Raises:
        ValueError: if a module of the package is on no page.
    """
    text_by_page, rest = {}, modules()
    rest.pop("ddpm_jax")
    for names in LAYERS.values():
        for name in names:
            whole = f"ddpm_jax.{name}"
            page_modules = [module for module in rest if module == whole or module.startswith(f"{whole}.")]
            lines = []
            for module in page_modules:
                path = rest.pop(module)
                level = 1 if module == whole else 2
                lines += [f"::: {module}", "    options:", f"      heading_level: {level}"]
                if path.name == "__init__.py":  # what it imports for its users is documented where it is defined
                    lines.append(f"      members: {own_members(path) or 'false'}")
                lines.append("")
                lines += reexports(module, path)
            text_by_page[name] = "\n".join(lines)
    if rest:
        raise ValueError(f"modules on no page of the API: {', '.join(rest)}; name their folder in LAYERS")
    return text_by_page


def own_members(path: pathlib.Path) -> list[str]:
    """The public functions, classes and variables that a package's `__init__` defines itself."""
    body = ast.parse(path.read_text()).body
    variables = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    variables += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    names = [name.id for each in variables for name in (each.elts if isinstance(each, ast.Tuple) else [each])]
    return [name for name in (*names, *_definitions(body)) if not name.startswith("_") and "." not in name]


def reexports(module: str, path: pathlib.Path) -> list[str]:
    """A table of the names that a package's `__init__` imports for its users, linked to their definitions."""
    rows = []
    exported = _exported(path)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_jax"):
            rows += [
                (a.asname or a.name, f"{node.module}.{a.name}") for a in node.names if (a.asname or a.name) in exported
            ]
    if not rows:
        return []
    links = ", ".join(
        f"[`{name}`][{target}]" if _is_documented(target) else f"`{name}`" for name, target in sorted(rows)
    )
    return [f"Also importable from `{module}`: {links}.", ""]


def _is_documented(target: str) -> bool:
    """Whether the API has an entry for "module.name": each function and class, and each variable assigned alone."""
    module, _, name = target.rpartition(".")
    body = ast.parse(modules()[module].read_text()).body if module in modules() else []
    alone = [[getattr(each, "id", "") for each in node.targets] for node in body if isinstance(node, ast.Assign)]
    return [name] in alone or name in _definitions(body)


def _exported(path: pathlib.Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


def api_index() -> str:
    """Markdown of the API's first page: its modules, with the first lines of their docstrings."""
    lines = ["# API reference", ""]
    lines += [
        "Every public function, class and method of `ddpm_jax`, from its docstring. `from ddpm_jax import schedules, "
        "gaussian, samplers` imports the modules; `ddpm_jax.UNet` is the network. A module imports only from those "
        "above it in this table ([design](../design.md)).",
        "",
    ]
    found = modules()
    for layer, names in LAYERS.items():
        lines += [f"## {layer}", "", "| module | contents |", "|---|---|"]
        for name in names:
            title = (ast.get_docstring(ast.parse(found[f"ddpm_jax.{name}"].read_text())) or "").splitlines()[0]
            lines.append(f"| [`ddpm_jax.{name}`](api/{name}.md) | {cell(title)} |")
        lines.append("")
    return "\n".join(lines)


def config_page() -> str:
    """Markdown of the config reference: a table for each dataclass of `config.fields`."""
    lines = [
        "---",
        "hide: [toc]",
        "---",
        "# Config reference",
        "",
        "The fields of a config, with their defaults, from `ddpm_jax/config/fields.py`. Each field is a flag of "
        "`ddpm-jax train` and `ddpm-jax preflight`: its name with `-` for `_`, for example "
        "`--net.channel-multipliers 1 2 2`. Numbers outside the range are refused (`[` includes the end, `(` excludes "
        "it). A config file is a Python file whose `config` is a `ddpm_jax.config.Config`; `ddpm-jax train "
        "NAME:VARIANT` uses another variable of the file.",
        "",
    ]
    for prefix, kind in config_parts():
        title = f"{prefix[:-1]}: {kind.__name__}" if prefix else "Config"
        lines += [f"## {title}", "", "| field | type | default | range | meaning |", "|---|---|---|---|---|"]
        texts = attribute_docs(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default):
                continue
            name = prefix + field.name
            hints = (typing.get_type_hints(kind, include_extras=extras)[field.name] for extras in (False, True))
            written, interval = format_type(next(hints)), ranges.interval_of(next(hints)).replace(", ", ",\u00a0")
            cells = (f"`{name}`", written, f"`{field.default!r}`", interval, texts[field.name])
            lines.append(f"| {' | '.join(cell(each) for each in cells)} |")
        lines.append("")
    return "\n".join(lines)


def config_parts() -> list[tuple[str, type]]:
    """The dataclasses of a config with the prefixes of their fields: ("", Config), ("data.", Data), ..."""
    parts: list[tuple[str, type]] = []

    def visit(prefix, kind):
        parts.append((prefix, kind))
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default):
                visit(f"{prefix}{field.name}.", type(field.default))

    visit("", fields.Config)
    return parts


def attribute_docs(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and its bases, as one line each."""
    texts = {}
    for owner in filter(dataclasses.is_dataclass, kind.__mro__):
        (body,) = (node.body for node in ast.parse(inspect.getsource(owner)).body if isinstance(node, ast.ClassDef))
        for field, after in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(inspect.cleandoc(str(after.value.value)).split())
    return texts


def format_type(kind: typing.Any) -> str:
    """A type as a reader of a table needs it: the values of a Literal, else the annotation."""
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{each}`" for each in typing.get_args(kind))
    name = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return f"`{name.replace(' | ', ' or ')}`"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def command_lines() -> list[list[str]]:
    """Every command that has a help text of its own, as words after `ddpm-jax`."""
    lines = []
    for name in cli.COMMANDS:
        lines.append([name])
        if name == "evaluate":
            lines += [[name, "RUN", command] for command in evaluate.COMMANDS]
        if name == "convert":
            lines += [[name, *command] for command in convert.COMMANDS]
    return lines


def help_text(words: list[str]) -> str:
    """What `ddpm-jax WORDS --help` prints, with lines of at most WIDTH characters."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1"), contextlib.redirect_stdout(out):
        try:
            cli.call([*words, "--help"])
        except SystemExit as ended:
            if ended.code:
                raise
    return "\n".join(_wrap(line.rstrip()) for line in out.getvalue().splitlines())


def _wrap(line: str) -> str:
    """A line of a help text, continued below its own beginning, or below the second column that it has."""
    column = re.match(r" {2,}\S+( \S+)? {2,}", line) or re.match(" *", line)
    indent = " " * (column.end() if column else 0)
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=indent)) if len(line) > WIDTH else line


def cli_pages() -> dict[str, str]:
    """Markdown of the command-line reference by page name: "index", and the help texts of each command."""
    index = [
        "# Command line",
        "",
        f"The commands of ddpm_jax {ddpm_jax.__version__}; each page is the output of `--help`. "
        "[Run folder](../files.md) lists the files that they write and their exit statuses.",
        "",
        "| command | purpose |",
        "|---|---|",
        *(f"| [`ddpm-jax {name}`](cli/{name}.md) | {cell(title)} |" for name, title in cli.COMMANDS.items()),
        "",
        "`python -m ddpm_jax COMMAND` is the same program, and in a clone `train.py` and `sample.py` are `ddpm-jax "
        "train` and `ddpm-jax sample`. `ddpm-jax --version` prints the version.",
    ]
    text_by_page = {"index": "\n".join(index)}
    for name, title in cli.COMMANDS.items():
        lines = [f"# ddpm-jax {name}", "", f"`ddpm-jax {name}`: {title}.", ""]
        if name in ("train", "preflight"):
            lines += [
                "Each field of the config is a flag; their ranges are in the [config reference](../config.md).",
                "",
            ]
        for words in (words for words in command_lines() if words[0] == name):
            if len(words) > 1:
                lines += [f"## {' '.join(words[1:])}", ""]
            lines += ["```text", help_text(words), "```", ""]
        text_by_page[name] = "\n".join(lines)
    return text_by_page
