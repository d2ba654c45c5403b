# What a person types here. Every target installs what it needs into .venv on first use.
# A stamp file says what .venv holds: .run (the package itself), .dev (and all that tests and checks need), .bench (and
# what draws plots) or .docs (and what makes the site).

PYTHON ?= python3
ARGS   ?=
TORCH  := torch==2.13.0

# By itself it would pull another torch, and code for GPUs; the rest is what it imports.
TORCHREC := torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 tensordict==0.15.3 pyvers==0.2.3 torchmetrics==1.0.3 tqdm \
            pyre-extensions==0.0.32 typing-inspect==0.9.0 mypy-extensions importlib-metadata cloudpickle

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-torch package fuzz fuzz-serve bench scale papers docs pictures lint format clean

help: ## print what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  ARGS=...      is passed on, for example: make test ARGS='-k linear'"
	@echo "  PYTHON=...    makes .venv with another interpreter (3.10 or newer)"

demo: $(VENV)/.run ## hoist an example model and show what it saves
	@$(BIN)/rankhoist demo $(ARGS)

test: $(VENV)/.dev ## run the tests: two workers, one thread each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-all: $(VENV)/.dev ## run the slow tests too: every public model
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m '' $(ARGS)

test-torch: ## run the quick tests with another PyTorch, in an environment of its own: VERSION=2.11.0
	@test -n "$(VERSION)" || { echo "say which: make test-torch VERSION=2.11.0" >&2; exit 1; }
	@.ci/test-torch "$(PYTHON)" "$(VERSION)" $(ARGS)

package: $(VENV)/.run ## build wheel and sdist into dist/, and use the wheel in an environment that knows nothing else
	@.ci/package "$(PYTHON)"

fuzz: $(VENV)/.dev ## check 10 000 random models, new ones in every run
	@RANKHOIST_FUZZ_EXAMPLES=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 0 --hypothesis-show-statistics tests/test_random_models.py $(ARGS)

fuzz-serve: $(VENV)/.dev ## send a server 100 000 malformed requests over HTTP and over gRPC, right ones in between
	@RANKHOIST_FUZZ_REQUESTS=100000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 0 tests/test_serving_fuzz.py $(ARGS)

bench: $(VENV)/.bench ## time levels and baselines (under five minutes; ARGS=--all: everything)
	@OMP_NUM_THREADS=1 $(BIN)/rankhoist bench $(ARGS)

scale: $(VENV)/.bench ## how hoisting and calls grow with fields, depth, candidates, requests
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py $(ARGS)

papers: $(VENV)/.bench ## reproduce the two papers in reduced size (under 20 minutes; ARGS=--full: docs/papers.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.papers $(ARGS)

docs: $(VENV)/.docs ## make the site of documents in build/docs, without a network; warnings are errors
	@$(BIN)/sphinx-build -q -W --keep-going docs build/docs $(ARGS)
	@echo "build/docs/index.html"

pictures: $(VENV)/.run ## draw the pictures of the documents again
	@$(BIN)/python docs/pictures/draw.py

lint: $(VENV)/.dev ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## format the code and fix what can be fixed safely
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

clean: ## remove caches and build outputs; .venv stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# pip is the last thing venv writes, so its presence says that the environment is whole.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "rankhoist needs Python 3.10 or newer; '$(PYTHON)' is not that. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "'$(PYTHON)' has no venv module. On Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/pip
	@echo "installing $(TORCH) (one time, about a minute)"
	@$(PIP) install $(TORCH)
	@echo "installing rankhoist"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.run
	@echo "installing what benchmarks need (one time)"
	@$(PIP) install -e '.[bench]'
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.run
	@echo "installing what makes the documents (one time)"
	@$(PIP) install -e '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.run
	@echo "installing what tests and checks need (one time)"
	@$(PIP) install -e '.[dev]'
	@$(PIP) install --no-deps $(TORCHREC)
	@touch $@
