"""What the project's results come from: `python -m experiments.run TABLE` trains and measures what a table lacks,
`python -m experiments.results_page` makes docs/results.md and its figures of what has been measured."""
