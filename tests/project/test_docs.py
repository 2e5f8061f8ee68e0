"""The documentation: its pages link to what exists, are listed, and have what the code has."""

import base64
import dataclasses
import os
import pathlib
import re
import shlex
import tomllib
import zlib

import pytest
import tyro
import yaml

from ddpm_jax.config import Config
from ddpm_jax.programs import cli, convert, evaluate, sample
from scripts import check_site, docs_reference

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
GENERATED = ("reference/", "contributing.md", "changelog.md")


def listed(entries):
    for entry in entries:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from listed([value] if isinstance(value, str) else value)
        else:
            yield entry


NAVIGATION = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_is_in_the_navigation_once():
    assert len(NAVIGATION) == len(set(NAVIGATION))
    # pages in Chinese and notebooks are added by the hook
    assert {page for page in PAGES if not page.startswith("zh/")} <= set(NAVIGATION)


def test_the_navigation_names_pages_that_there_are():
    assert [page for page in NAVIGATION if not page.startswith(GENERATED) and not (DOCS / page).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_links_to_exist(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        path = pathlib.Path(os.path.normpath((DOCS / page).parent / target))
        generated = path.relative_to(DOCS).as_posix().startswith(GENERATED) if path.is_relative_to(DOCS) else False
        made = [file.resolve() for file in DOCS.rglob("*.ipynb") if path.suffix == ".md"]
        assert generated or path.exists() or path.with_suffix(".ipynb").resolve() in made, target


def anchors(page):
    """The anchors of a page's headings as GitHub makes them, with a hyphen for each space (the site: for several)."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_the_headings_that_a_page_links_to_exist_on_github_too(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", (DOCS / page).read_text()):
        path = os.path.normpath(os.path.join(os.path.dirname(page), target)) if target else page
        assert path not in PAGES or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("zh/")])
def test_a_long_page_begins_with_a_summary_of_five_lines(page):
    text = (DOCS / page).read_text()
    if len(text.split()) > 1500:
        introduction = text.partition("\n## ")[0]
        assert len(re.findall(r"^- ", introduction.partition("**Summary**\n\n")[2].partition("\n\n")[0], re.M)) == 5


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_of_a_config_that_a_page_names_exist(page):
    fields = {
        f"{prefix}{field.name}".replace("_", "-")
        for prefix, kind in docs_reference.config_parts()
        for field in dataclasses.fields(kind)
    }
    named = re.findall(
        r"--((?:data|schedule|net|text|condition|loss|optim|sampling|evaluation)\.[\w.-]*\w)", (DOCS / page).read_text()
    )
    assert [name for name in named if re.sub(r"\.no-", ".", name) not in fields] == []


def test_a_page_of_the_gallery_shows_files_that_there_are():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (DOCS / "gallery.md").read_text())
    assert len(shown) >= 15
    assert {path.name for path in (DOCS / "gallery").iterdir()} == {
        pathlib.Path(name).name for name in shown if name.startswith("gallery/")
    }


@pytest.mark.parametrize("page", ["gallery.md", "quickstart.md"])
def test_the_commands_of_a_page_are_those_of_the_programs(page):
    text = (DOCS / page).read_text()
    samples = re.findall(r"^ddpm-jax sample ([^#\n]*)", text, re.M)
    evaluations = re.findall(r"^ddpm-jax evaluate \S+ (\w+)([^\n#]*)", text, re.M)
    assert len(samples) >= 3 and len(evaluations) >= 3
    for line in samples:
        tyro.cli(sample.Arguments, args=shlex.split(line))
    for command, flags in evaluations:
        tyro.cli(evaluate.COMMANDS[command][0], args=flags.split())


def test_the_gallery_has_every_figure():
    figures = {name for name, (_, module) in evaluate.COMMANDS.items() if module.startswith("figures.")}
    assert figures <= set(re.findall(r"^ddpm-jax evaluate \S+ (\w+)", (DOCS / "gallery.md").read_text(), re.M))


def test_the_oldest_versions_of_the_table_are_the_lowest_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in required if ">=" in each)
    bounds["Python"] = project["requires-python"].removeprefix(">=")
    table = (DOCS / "install.md").read_text().partition("| oldest | newest |")[2].partition("\n\n")[0]
    tried = {}
    for row in table.splitlines()[2:]:
        packages, oldest, _ = (re.sub(r" \(.*?\)", "", cell).strip().split(", ") for cell in row.split("|")[1:-1])
        tried |= dict(zip(packages, oldest * (len(packages) if len(oldest) == 1 else 1), strict=True))
    assert {name for name in bounds if name in "\n".join(project["dependencies"])} <= set(tried)
    wrong = {
        name: oldest for name, oldest in tried.items() if not f"{oldest}.".startswith(f"{bounds.get(name, oldest)}.")
    }
    assert wrong == {}


# --- pages made from the code


def test_the_config_reference_has_every_field_with_its_default():
    page = docs_reference.config_page()
    count = 0
    for prefix, kind in docs_reference.config_parts():
        for field in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(field.default):
                (row,) = (line for line in page.splitlines() if line.startswith(f"| `{prefix}{field.name}` |"))
                cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
                assert cells[2] == f"`{field.default!r}`" and len(cells) == 5 and cells[4]
                count += 1
    assert count == len(re.findall(r"^\| `", page, re.M)) > 80
    assert "`epsilon`" not in page and "`loss.predicts` | `eps`, `x0`, `v`, `mean` |" in page
    assert docs_reference.config_parts()[0] == ("", Config)


def test_the_help_of_every_command_is_in_the_reference(monkeypatch):
    shown = []
    monkeypatch.setattr(docs_reference, "help_text", lambda words: shown.append(words) or "HELP")
    pages = docs_reference.cli_pages()
    assert set(pages) == {"index", *cli.COMMANDS}
    assert len(shown) == len(cli.COMMANDS) + len(evaluate.COMMANDS) + len(convert.COMMANDS)
    assert all(f"cli/{name}.md" in pages["index"] for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words", [["prepare"], ["evaluate"], ["evaluate", "RUN", "likelihood"], ["convert", "to", "plain"]]
)
def test_a_help_text_is_what_the_program_prints(words):
    text = docs_reference.help_text(words)
    assert text.startswith("usage: ddpm-jax") and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 78
    assert "--num" in text or words[-1] != "likelihood"


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("evaluate", "convert")])
def test_a_help_text_begins_with_a_title(name):
    assert re.match(r"[A-Z][^─]+\.$", docs_reference.help_text([name]).split("\n\n")[1])


def test_every_module_is_on_a_page_of_the_api(monkeypatch):
    pages = docs_reference.api_pages()
    written = [module for page in pages.values() for module in re.findall(r"^::: (\S+)$", page, re.M)]
    assert sorted(written) == sorted(set(docs_reference.modules()) - {"ddpm_jax"})
    assert "ddpm_jax.samplers.chain" in written and not any("._" in module for module in written)
    assert "[`ddim`][ddpm_jax.samplers.onestep.ddim]" in pages["samplers"]
    monkeypatch.setattr(docs_reference, "LAYERS", {"all": tuple(sorted(pages))[1:]})
    with pytest.raises(ValueError, match=r"on no page of the API: ddpm_jax\.checkpoint"):
        docs_reference.api_pages()


def test_public_names_are_found_with_their_methods():
    names = docs_reference.public_names(docs_reference.modules()["ddpm_jax.data.order"])
    assert "EpochShuffle" in names and "EpochShuffle.indices" in names
    assert not any(part.startswith("_") for name in names for part in name.split("."))


# --- checks of a built site


def make_site(folder, pages):
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return check_site.read_pages(folder)


def test_files_of_other_hosts_are_found(tmp_path):
    head = '<link rel="canonical" href="https://a.b/"><link rel="stylesheet" href="s.css"><script src="s.js"></script>'
    pages = make_site(tmp_path, {"index.html": head + '<a href="https://c.d/e">text</a><img src="p.png">'})
    assert check_site.external_files(tmp_path, pages) == []
    bad = '<script src="https://cdn.example/s.js"></script><img src="//h.example/p.png">'
    pages = make_site(
        tmp_path, {"sub/bad.html": bad, "s.css": "@font-face { src: url(https://fonts.example/f.woff2) }"}
    )
    found = check_site.external_files(tmp_path, pages)
    assert len(found) == 3 and found[2] == "s.css loads https://fonts.example/f.woff2"


def test_clicks_are_counted_along_links(tmp_path):
    texts = {
        "index.html": '<a href="sub/a.html#x"></a>',
        "sub/a.html": '<a href="../b.html"></a><a href="."></a>',
        "b.html": '<a href="c%20d.html"></a>',
        "c d.html": "",
        "alone.html": "",
    }
    found = check_site.clicks(make_site(tmp_path, texts))
    assert found == {"index.html": 0, "sub/a.html": 1, "b.html": 2, "c d.html": 3}


def test_the_inventory_is_compared_with_the_code(tmp_path):
    public = {
        f"{m}.{name}" for m, path in docs_reference.modules().items() for name in docs_reference.public_names(path)
    }
    names = sorted(public | set(docs_reference.modules()))
    lines = "\n".join(f"{name} py:function 1 reference/api.html#$ -" for name in names)
    head = b"# Sphinx inventory version 2\n# Project: x\n# Version: 0\n# The remainder is compressed using zlib.\n"
    (tmp_path / "objects.inv").write_bytes(head + zlib.compress(lines.encode()))
    documented = check_site.inventory(tmp_path)
    assert check_site.missing_names(documented) == []
    changed = (documented - {"ddpm_jax.gaussian.q_sample"}) | {"ddpm_jax.gaussian._unknown"}
    assert check_site.missing_names(changed) == [
        "not in the API: ddpm_jax.gaussian.q_sample",
        "private, in the API: ddpm_jax.gaussian._unknown",
    ]


# --- the hooks, where mkdocs is installed


def test_a_notebook_becomes_a_page_with_its_outputs():
    pytest.importorskip("mkdocs")
    nbformat = pytest.importorskip("nbformat")
    from mkdocs.exceptions import PluginError

    from scripts import docs_hooks

    v4 = nbformat.v4
    png = base64.b64encode(b"picture").decode()
    shown = [
        v4.new_output("stream", text="a ``` b\n"),
        v4.new_output("display_data", {"image/png": png, "text/plain": "p"}),
    ]
    cells = [v4.new_markdown_cell("# Title\n\n$x$"), v4.new_code_cell("x = 1", execution_count=1, outputs=shown)]
    text, pictures = docs_hooks.notebook_page(v4.new_notebook(cells=cells), "first")
    assert pictures == {"first-0.png": b"picture"}
    assert text.startswith("# Title\n\n$x$\n\n") and "```python\nx = 1\n```" in text
    assert "````{ .text .output }\na ``` b\n````" in text and "![](first-0.png)" in text
    cells[1].execution_count = None
    with pytest.raises(PluginError, match="cell 1 was not executed"):
        docs_hooks.notebook_page(v4.new_notebook(cells=cells), "first")
