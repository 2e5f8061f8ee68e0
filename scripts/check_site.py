"""Checks a built site: complete, self-contained, two clicks deep.

    python -m scripts.check_site site

1. Every public function, class and method of ddpm_jax is in the API, and nothing private.
2. No page, style sheet or script of ours loads anything from another host.
3. Every page is at most two clicks from the first one.
4. Every formula's renderer and the search index are files of the site.
Exit status 1 names what fails.
"""

import html.parser
import json
import pathlib
import re
import sys
import urllib.parse
import zlib

from scripts.docs_reference import modules, public_names

CLICKS = 2
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
"""The attributes whose files a browser fetches as it shows a page."""
NOT_FETCHED = ("canonical", "alternate", "prev", "next", "author", "license")  # of <link rel=...>
RENDERED = ("katex/katex.min.js", "katex/katex.min.css", "site.js", "search/search_index.json")


class Page(html.parser.HTMLParser):
    """The files that a page loads, and the pages that it links to."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in NOT_FETCHED:
            self.loaded.append(values[LOADED[tag]])
        self.loaded += re.findall(r"url\(([^)]+)\)", values.get("style", ""))


def is_external(address: str) -> bool:
    """Whether an address names a host."""
    return bool(urllib.parse.urlsplit(address.strip("'\" ")).netloc)


def read_pages(site: pathlib.Path) -> dict[str, Page]:
    """The pages of a site by their path."""
    return {path.relative_to(site).as_posix(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def external_files(site: pathlib.Path, site_pages: dict[str, Page]) -> list[str]:
    """Files of other hosts that pages or style sheets load, each with the page."""
    found = [f"{name} loads {file}" for name, page in site_pages.items() for file in page.loaded if is_external(file)]
    for path in sorted(site.rglob("*.css")):
        addresses = re.findall(r"url\(([^)]*)\)|@import\s+[\"']([^\"']+)", path.read_text())
        found += [f"{path.relative_to(site)} loads {a or b}" for a, b in addresses if is_external(a or b)]
    return found


def clicks(site_pages: dict[str, Page], start: str = "index.html") -> dict[str, int]:
    """The number of clicks from the first page to each page that can be reached."""
    depths, queue = {start: 0}, [start]
    for name in queue:
        for link in site_pages[name].links:
            target = urllib.parse.unquote(urllib.parse.urlsplit(link).path)
            if is_external(link) or not target:
                continue
            path = pathlib.PurePosixPath(name).parent / target
            resolved = _normalise(path)
            if resolved in site_pages and resolved not in depths:
                depths[resolved] = depths[name] + 1
                queue.append(resolved)
    return depths


def _normalise(path: pathlib.PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts) or "index.html"


def inventory(site: pathlib.Path) -> set[str]:
    """The names that the API documents: those of objects.inv."""
    content = (site / "objects.inv").read_bytes()
    head, body = content[: content.index(b"zlib")], content[content.index(b"zlib") :]
    if not head.startswith(b"# Sphinx inventory version 2"):
        raise ValueError(f"{site}/objects.inv is not an inventory of version 2")
    lines = zlib.decompress(body[body.index(b"\n") + 1 :]).decode().splitlines()
    return {line.split(" ")[0] for line in lines}


def missing_names(documented: set[str]) -> list[str]:
    """Public names of ddpm_jax that the API lacks, and private ones that it has."""
    public = {f"{module}.{name}" for module, path in modules().items() for name in public_names(path)}
    private = [name for name in documented if any(part.startswith("_") for part in name.split("."))]
    missing = sorted({*public, *modules()} - documented - {"ddpm_jax"})
    return [f"not in the API: {name}" for name in missing] + [
        f"private, in the API: {name}" for name in sorted(private)
    ]


def main(argv: list[str]) -> int:
    """Checks the site in a folder; exit status 0, or 1 with what fails."""
    site = pathlib.Path(argv[0])
    site_pages = read_pages(site)
    depths = clicks(site_pages)
    failures = external_files(site, site_pages) + missing_names(inventory(site))
    failures += [
        f"more than {CLICKS} clicks away: {name}"
        for name in site_pages
        if depths.get(name, CLICKS + 1) > CLICKS and name != "404.html"
    ]
    failures += [f"no file {name}" for name in RENDERED if not (site / name).exists()]
    index = json.loads((site / "search" / "search_index.json").read_text())
    print(*failures, sep="\n", end="\n" * bool(failures))
    print(f"{len(site_pages)} pages, {len(index['docs'])} entries of the search index, {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
