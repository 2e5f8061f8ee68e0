"""The page of preflight reports: refused arguments, and a page that is what its reports say."""

import pathlib

import pytest

from scripts import preflight_table

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--run", "cifar100"], "unknown 'cifar100'; known are digits:wide, mnist:wide"),
        (["--on", "v4-9"], "unknown 'v4-9'; known are"),
        ([], "must have the lines '<!-- rows"),
    ],
)
def test_tables_are_refused(args, text, tmp_path, capsys):
    (tmp_path / "page.md").write_text("no marks")
    assert preflight_table.main([str(tmp_path / "page.md"), *args]) == 2
    assert text in capsys.readouterr().err


def test_the_page_is_what_its_reports_say(tmp_path, monkeypatch):
    """Writing it again changes nothing; and each row that is not there is there as a command."""
    monkeypatch.chdir(ROOT)
    for name in ("preflight.md", "preflight.json"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    assert preflight_table.main([str(tmp_path / "preflight.md")]) == 0
    page = (tmp_path / "preflight.md").read_text()
    assert page == (ROOT / "docs" / "preflight.md").read_text()
    rows = preflight_table.read_reports(tmp_path / "preflight.md")
    assert len(rows) + page.count("\nddpm-jax preflight configs/") >= len(preflight_table.TABLE_CONFIGS) * len(
        preflight_table.SLICES
    )
    for made in rows.values():
        assert made["batch"] % made["place"]["devices"] == 0
