"""The Chinese pages: every formula, name and link of the English tutorial, and links to files that exist."""

import re

import pytest

from scripts import notebooks

PAIRS = notebooks.twins()
PAGES = sorted(notebooks.CHINESE.parent.rglob("*.md"))
LINK = re.compile(r"\]\(([^)#:]+?)(?:#[^)]*)?\)")


def markdown(notebook):
    return [notebooks.source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def formulas(text):
    """The formulas without words, spaces and full stops."""
    found = re.findall(r"\$\$?[^$]+\$\$?", text)
    return [re.sub(r"\s|\.(?=\$)", "", re.sub(r"\\text\{[^}]*\}", "", formula)) for formula in found]


def test_every_notebook_is_translated():
    assert [path.name for path, _, _ in PAIRS] == sorted(path.name for path in notebooks.ENGLISH.glob("*.ipynb"))


@pytest.mark.parametrize(("path", "english", "chinese"), PAIRS, ids=[path.stem for path, _, _ in PAIRS])
def test_every_cell_has_the_formulas_names_and_headings_of_the_english_one(path, english, chinese):
    for n, (original, translated) in enumerate(zip(markdown(english), markdown(chinese), strict=True)):
        assert set(formulas(original)) <= set(formulas(translated)), f"text {n}"
        names = [set(re.findall(r"`[^`]+`", text)) for text in (original, translated)]
        assert names[0] == names[1], f"text {n}"
        heads = [re.findall(r"^#+ ?[\d.]*", text, re.MULTILINE) for text in (original, translated)]
        assert heads[0] == heads[1], f"text {n}"
        assert len(LINK.findall(original)) == len(LINK.findall(translated)), f"text {n}"
        assert re.search("[\u4e00-\u9fff]", translated), f"text {n} is not Chinese"
        for link in LINK.findall(translated):
            assert (path.parent / link).exists(), link


def test_an_equal_formula_is_found_in_other_words_and_a_different_one_is_not():
    assert formulas(r"If $x = 1$, $$y \text{ for every } x.$$") == formulas(r"若 $x=1$ 则 $$y\text{ 对任意 }x$$")
    assert formulas("$x_t$") != formulas("$x_s$")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_the_pages_exist(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link
