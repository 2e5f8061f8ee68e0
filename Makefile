# make demo: trains a model of handwritten digits and draws what ten sentences ask for; needs only Python, make and git.
# make test: style, types and the quick tests; make test TESTS="tests/models/unet/test_unet.py" for some of them.
# make test-all: also the slow tests: real trainings, several hosts, hundreds of damaged files, other libraries.
# make mutants: checks that the quick tests notice each fault of tests/faults/mutants.toml.
# make results: the tables and figures of docs/results.md and docs/experiments.md, from the recorded results.
# make docs: the documentation as a site, site/index.html; needs a network once, for KaTeX and the theme.
# make kill-test: kills short runs a hundred times and checks that nothing is lost (ten minutes).
# VENV=.venv-oldest OLDEST=1 runs any of them with the oldest versions that pyproject.toml allows.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?=
BIN = $(VENV)/bin
KATEX_VERSION = 0.16.22
KATEX = $(abspath $(VENV))/katex-$(KATEX_VERSION)
PYTEST = $(BIN)/python -m pytest -n auto --no-loadscope-reorder
SENTENCES = "a photo of a zero" "somebody wrote a one" "the two of a child" "draw the digit three for me" "number four" \
	"in this picture there is a five" "a small scan of the handwritten digit six" "a photo of a seven" \
	"draw the digit eight for me" "number nine"
# compiled with all optimisations in make variants
AS_USERS = tests/goldens tests/test_training.py tests/samplers tests/pipeline/test_tiles.py
# repeated with another default random number generator
SEEDED = tests/test_keys.py tests/test_training.py tests/samplers tests/trainer tests/programs/test_train_and_sample.py \
	$(addprefix tests/pipeline/test_,tiles.py conditions.py image_conditioning.py)
ifeq ($(OLDEST),)
INSTALL = $(BIN)/python -m pip install --quiet
else
INSTALL = $(BIN)/python -m pip install --quiet uv && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --resolution lowest-direct
endif

.PHONY: demo test test-all slow variants trainings check mutants results docs kill-test clean

demo: $(VENV)/.core
	$(BIN)/python train.py configs/digits.py:text --workdir runs/text
	$(BIN)/python sample.py runs/text --num 100 --seed 0 --text $(SENTENCES) --out runs/text/demo --trajectory
	@echo "Samples: runs/text/demo/grid.png; their reverse process: runs/text/demo/trajectory.png."

test: check
	$(PYTEST) --dist loadfile -m "not slow" $(TESTS)

test-all: test slow variants trainings

slow: $(VENV)/.dev
	$(PYTEST) --dist loadfile -m slow --ignore=tests/project/test_results.py $(TESTS)

variants: $(VENV)/.dev
	OPTIMISED=1 $(PYTEST) --dist loadfile -m "not slow" $(AS_USERS) $(TESTS)
	JAX_DEFAULT_PRNG_IMPL=rbg $(PYTEST) --dist loadfile -m "not slow" $(SEEDED) $(TESTS)

trainings: $(VENV)/.dev
	$(PYTEST) --dist load tests/project/test_results.py $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

mutants: $(VENV)/.dev
	$(BIN)/python scripts/mutants.py

kill-test: $(VENV)/.core
	$(BIN)/python -m scripts.kill_test

results: $(VENV)/.dev
	$(BIN)/python -m experiments.results_page

docs: $(VENV)/.docs $(KATEX)
	NO_MKDOCS_2_WARNING=1 KATEX=$(KATEX) $(BIN)/mkdocs build --strict
	$(BIN)/python -m scripts.check_site site

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.core

# formulas are rendered by KaTeX from its npm package; the extra docs brings npm
$(KATEX): $(VENV)/.docs
	rm -rf $@ && mkdir $@
	cd $@ && $(abspath $(BIN))/npm pack --silent katex@$(KATEX_VERSION)
	tar -xzf $@/katex-$(KATEX_VERSION).tgz -C $@ --strip-components 1

clean:
	rm -rf $(VENV) site .jax_cache .pytest_cache .ruff_cache
