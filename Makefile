# make setup   the environment: .venv with the pinned stack
# make demo    trains a small storyteller on two CPU ranks and lets it write
# make test    the test suite
# make soak    two hundred kill -9 in a row, every layout to every other, rented runs under faults; see tests/soak/*.json
# make oracles the providers' own clients, that our servers are tried against, each in an environment of its own
# make check   what CI runs: lint, types, tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

export DTRAIN_HOME ?= $(CURDIR)/.dtrain

PYTHONS_OF_CLIENTS := $(foreach name,lambda runpod vast,.oracles/$(name)/.ready)

.PHONY: setup demo test oracles soak lint types check wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dtrain needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv is missing. On Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 2; }
	$(PIP) install -q -c constraints.txt pip setuptools wheel
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[train,wandb,ssh,gcp,lambda,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/dtrain launch --profile cpu configs/storyteller-tiny.yaml --yes

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 4 --dist loadgroup --no-loadscope-reorder

oracles: $(PYTHONS_OF_CLIENTS)

.oracles/%/.ready: tests/cloud/oracles/%.txt
	$(PYTHON) -m venv .oracles/$*
	.oracles/$*/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.kills --kills 200 --json tests/soak/kills.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.crossings --json tests/soak/crossings.json
	$(BIN)/python -m tests.soak.features --json tests/soak/features.json
	DTRAIN_LEAK_SWEEP=tests/soak $(BIN)/python -m pytest -q tests/cloud -k "every_call or Contract"
	$(BIN)/python -m tests.soak.rentals --launches 200 --json tests/measured/soak_rentals.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
