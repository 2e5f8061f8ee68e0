"""Experiments of docs/experiments.md: `python -m experiments.run TABLE` trains and measures missing rows of a table,
`python -m experiments.results_page` makes the page and its figures from the results."""
