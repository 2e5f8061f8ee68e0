# make demo: trains a model of handwritten digits and draws from it, with nothing but Python, make and git.
# make test: style, types and the whole suite; make test TESTS="-m 'not slow'": what takes less than ten seconds.
# make results: the tables and figures of docs/results.md, from what has been measured.
# make drill: a hundred kills of short runs, and whether anything is lost (ten minutes).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check results drill clean

demo: $(VENV)/.core
	$(BIN)/python train.py configs/digits.py --workdir runs/digits
	$(BIN)/python sample.py runs/digits --num 64 --seed 0 --out runs/digits/demo --trajectory
	@echo "Look at runs/digits/demo/grid.png, and at runs/digits/demo/trajectory.png for how it came about."

test: check
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

drill: $(VENV)/.core
	$(BIN)/python -m benchmarks.drill

results: $(VENV)/.dev
	$(BIN)/python -m experiments.page

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache
