# make demo | test | fuzz | bench | faults | docs | lint | format | clean | distclean. Each sets up what it needs, once; PYTHON
# picks the interpreter (make test PYTHON=python3.12), ARGS is passed on (make test ARGS="-k norms -x").
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Stamps are named after what they depend on: a stamp that exists is current, and then nothing is run and no network
# is needed. The environment belongs to one interpreter and one folder, its packages to the two files that name them.
checksum = $(shell { $(1); } 2>/dev/null | cksum | cut -d ' ' -f 1)
MADE := $(VENV)/.made-$(call checksum,pwd; $(PYTHON) -VV)
PACKAGES := $(call checksum,cat pyproject.toml constraints.txt)
INSTALLED := $(VENV)/.installed-$(PACKAGES)
INSTALLED_DEV := $(VENV)/.installed-dev-$(PACKAGES)
INSTALL := $(BIN)/python -m pip install -c constraints.txt

.PHONY: help demo test fuzz bench faults docs lint format clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(INSTALLED)
	$(BIN)/lit-small-lm fit -c configs/demo.yaml $(ARGS)

test: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

# Ten thousand broken texts, requests and files, and every wrong value of every option, each through the front door.
fuzz: $(INSTALLED_DEV)
	LIT_SMALL_LM_EXAMPLES=10000 LIT_SMALL_LM_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/cli/test_fuzz.py \
		tests/cli/test_every_option.py $(ARGS)

# All but the study of depth, which takes hours; ARGS="training --shape S1" for one of them.
bench: $(INSTALLED_DEV)
	@$(BIN)/python benchmarks $(ARGS)

# Kills, signals, damage, NaN, full disks: this command line and plain Lightning at the same job; ARGS=--long for what
# docs/reliability.md shows.
faults: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults $(ARGS)

docs: $(INSTALLED_DEV)
	$(BIN)/python -m mkdocs build

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What tools leave behind; runs/ is yours and stays.
clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(MADE):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, see PYTHON=")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch comes first and pinned, so that nothing else can choose another build of it.
$(INSTALLED): $(MADE)
	@echo "installing packages into $(VENV) (a few minutes, once)"
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(INSTALL) -e ".[dev]"
	@touch $@
