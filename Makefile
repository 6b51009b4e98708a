# The only door: every task of this project by name. Needs make, root and Python 3.11; `make setup`
# installs the rest (see install.sh). CI calls the same targets.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTEST := $(PYTHON) -m pytest -q
# A test that should run here and was skipped is a failure (tests/conftest.py).
STRICT := HOSTD_TEST_STRICT=1
SHELL_FILES := install.sh $(wildcard scripts/*.sh)
BENCHMARKS := $(filter-out measure functions,$(basename $(notdir $(wildcard benchmarks/*.py))))
FORMATTED := hostd tests benchmarks scripts

.PHONY: help setup demo test test-fast test-root test-cluster bench fmt lint type house check clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

setup: $(READY) ## System packages and the environment .venv

$(READY): pyproject.toml install.sh
	sh install.sh --develop $(VENV) --yes
	@touch $@

demo: $(READY) ## The main job on this machine: a daemon, an image, a sweep, where the time went
	sh scripts/demo.sh

test: test-fast test-root test-cluster ## All tests

test-fast: $(READY) ## Tests that need neither root nor network
	$(STRICT) $(PYTEST) -m "not root and not cluster"

test-root: $(READY) ## Tests with real runc, mounts and FUSE
	$(STRICT) sh scripts/some_tests.sh $(PYTEST) -m "root and not cluster"

test-cluster: $(READY) ## Tests with daemons in network namespaces
	$(STRICT) sh scripts/some_tests.sh $(PYTEST) -m cluster

bench: $(READY) ## Benchmarks, as JSON
	@for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(PYTHON) -m benchmarks.$$name || exit 1; done

fmt: $(READY) ## Format the code
	$(VENV)/bin/ruff check --fix $(FORMATTED)
	$(VENV)/bin/ruff format $(FORMATTED)

lint: $(READY) ## Style, import ladder, shell scripts
	$(VENV)/bin/ruff check $(FORMATTED)
	$(VENV)/bin/ruff format --check $(FORMATTED)
	$(VENV)/bin/lint-imports
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_FILES); else echo "shellcheck is not installed: shell scripts were not checked"; fi

type: $(READY) ## mypy --strict
	$(VENV)/bin/mypy

house: $(READY) ## Sizes of functions and modules against the limits of the house
	$(PYTHON) scripts/house.py

check: fmt lint type test-fast ## What a commit must pass

clean: ## Remove what setup, demo and tests made here
	-sh scripts/demo.sh --sweep
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
