"""Hooks of mkdocs: pages made from the code and from notebooks, KaTeX, and links to files outside docs/.

    make docs

mkdocs.yml names this file.  The environment variable KATEX is the folder of KaTeX's package, which `make docs` fetches.
"""

import base64
import os
import pathlib
import re
import sys

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # mkdocs loads this file by its path
    sys.path.insert(0, str(ROOT))

from scripts import docs_reference  # noqa: E402

PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
SHOWN = (*PICTURES, "text/markdown", "text/plain")
"""The kinds of output that a page shows, the best first."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the generated pages into the navigation: API and command line under Reference, notebooks where they are."""
    sections = {name: entries for section in config.nav or [] for name, entries in section.items()}
    commands = [f"reference/cli/{name}.md" for name in docs_reference.cli.COMMANDS]
    names = [name for layer in docs_reference.LAYERS.values() for name in layer]
    sections["Reference"] += [
        {"Command line": ["reference/cli.md", *commands]},
        {"API": ["reference/api.md", *({name: f"reference/api/{name}.md"} for name in names)]},
    ]
    sections["Tutorial"] += pages_of("tutorial", "*.ipynb")
    if chinese := pages_of("zh", "*.md"):
        config.nav.append({"中文": [chinese[0], *pages_of("zh", "*.ipynb"), *chinese[1:]]})
    return config


def pages_of(folder: str, pattern: str) -> list[str]:
    """The pages of files below a folder of docs/, sorted, an overview first."""
    root = ROOT / "docs"
    paths = sorted((root / folder).rglob(pattern), key=lambda path: (path.name != "README.md", path))
    return [path.relative_to(root).with_suffix(".md").as_posix() for path in paths]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages, the notebooks as pages, and KaTeX's files."""
    text_by_uri = {"reference/config.md": docs_reference.config_page(), "reference/api.md": docs_reference.api_index()}
    text_by_uri |= {f"reference/api/{name}.md": text for name, text in docs_reference.api_pages().items()}
    for name, text in docs_reference.cli_pages().items():
        text_by_uri["reference/cli.md" if name == "index" else f"reference/cli/{name}.md"] = text
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text_by_uri[f"{name.lower()}.md"] = re.sub(r"\]\(docs/", "](", (ROOT / f"{name}.md").read_text())
    for uri, text in text_by_uri.items():
        files.append(File.generated(config, uri, content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = nbformat.reads(file.content_string, as_version=4)
        page = pathlib.PurePosixPath(file.src_uri).with_suffix(".md")
        text, pictures = notebook_page(notebook, page.stem)
        files.append(File.generated(config, str(page), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, str(page.parent / name), content=content))
    for uri, path in katex_files().items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def notebook_page(notebook: nbformat.NotebookNode, stem: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook with its outputs, and the pictures that it shows, by file name.

    Raises:
        PluginError: if a code cell was not executed, or an output is an error or of a kind that no page can show.
    """
    parts, pictures = [], {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if number == 0:
                parts.append(f'<p><a href="{stem}.ipynb" download>Download this notebook</a></p>')
        elif cell.cell_type == "code" and cell.source.strip():
            if cell.execution_count is None:
                raise PluginError(
                    f"{stem}.ipynb: cell {number} was not executed; run the notebook and save its outputs"
                )
            parts.append(fenced(cell.source, "python"))
            for output in cell.outputs:
                parts.append(output_text(output, f"{stem}.ipynb, cell {number}", stem, pictures))
    return "\n\n".join(parts), pictures


def output_text(output: nbformat.NotebookNode, where: str, stem: str, pictures: dict[str, bytes]) -> str:
    """Markdown of one output; adds its picture to `pictures`."""
    if output.output_type == "stream":
        return fenced(output.text.rstrip(), "text", "output")
    data = output.get("data", {})
    kind = next((kind for kind in SHOWN if kind in data), None)
    if kind is None:
        raise PluginError(f"{where}: a page cannot show this output: {output.output_type} of {list(data) or 'nothing'}")
    if kind in PICTURES:
        name = f"{stem}-{len(pictures)}.{PICTURES[kind]}"
        pictures[name] = data[kind].encode() if kind == "image/svg+xml" else base64.b64decode(data[kind])
        return f"![]({name})"
    return data[kind] if kind == "text/markdown" else fenced(data[kind].rstrip(), "text", "output")


def fenced(text: str, language: str, css: str = "") -> str:
    """A fenced code block, with more backticks than the text has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    head = f"{{ .{language} .{css} }}" if css else language
    return f"{fence}{head}\n{text}\n{fence}"


def katex_files() -> dict[str, pathlib.Path]:
    """KaTeX's script, style sheet, fonts and licence, by their address in the site."""
    package = pathlib.Path(os.environ.get("KATEX", ""))
    if not (package / "dist" / "katex.min.js").exists():
        raise PluginError("the environment variable KATEX must name the folder of KaTeX's npm package: run `make docs`")
    paths = [package / "dist" / "katex.min.js", package / "dist" / "katex.min.css", package / "LICENSE"]
    paths += sorted((package / "dist" / "fonts").glob("*.woff2"))
    return {f"katex/{'fonts/' * (path.suffix == '.woff2')}{path.name}": path for path in paths}


def on_page_markdown(markdown: str, *, page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks become links to their pages; a file outside docs/ becomes its path in the repository."""

    def link(found: re.Match) -> str:
        text, target = found[1], found[2]
        inside = os.path.normpath((pathlib.PurePosixPath(page.file.src_uri).parent / target).as_posix())
        path = inside.removeprefix("../")
        root_page = page.file.src_uri in ("contributing.md", "changelog.md")
        outside = inside != path or (root_page and not (ROOT / "docs" / inside).exists())
        return f"{text} (`{path}`)" if outside and (ROOT / path).exists() else found[0]

    markdown = re.sub(r"(\]\([^)\s:]+)\.ipynb([)#])", r"\1.md\2", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)\)", link, markdown)
