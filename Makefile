# Every target installs what it needs. `make` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SECONDS ?=
SEED ?= 1
LOCK := deploy/requirements.lock
TRAIN_LOCK := deploy/requirements-train.lock
COMPILE := $(BIN)/pip-compile -q --upgrade --strip-extras --generate-hashes --allow-unsafe \
  --no-emit-index-url --no-emit-find-links --no-emit-options
# A process for each processor. When they end, pytest-xdist interrupts them, which pytest would report as a warning.
PARALLEL := -n auto -p no:unraisableexception
# Two at a time, each with its own Kafka: tests wait for half of their time.
BROKER_TESTS := tests/bench tests/broker tests/faults -n 2 --dist loadfile -p no:unraisableexception
FAULTS := tests/faults tests/broker/test_connection.py --faults=long -s -v
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-train models demo test unit faults lint lock

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## install everything into .venv, including the JRE and Kafka

setup-train: $(VENV)/.ready-train ## install torch too, for training

models: $(VENV)/.ready-train ## rebuild the shipped models, without a network (about an hour)
	@$(BIN)/shopwindow train all --out models/default

demo: $(VENV)/.ready ## run the demo shop: Kafka, a worker, simulated shoppers (SECONDS=30 SEED=1)
	@$(BIN)/shopwindow demo $(if $(SECONDS),--seconds $(SECONDS)) --seed $(SEED)

test: $(VENV)/.ready ## run every test
	@$(BIN)/python -m pytest tests/unit $(PARALLEL)
	@$(BIN)/python -m pytest $(BROKER_TESTS)

unit: $(VENV)/.ready ## run the fast tests, without a broker: half a minute once kernels are compiled
	@$(BIN)/python -m pytest tests/unit $(PARALLEL) -m "not slow" --hypothesis-profile quick

faults: $(VENV)/.ready ## run the fault tests at length, twenty minutes or more (SEED=1 repeats a run)
	@$(BIN)/python -m pytest $(FAULTS) $(if $(filter command line,$(origin SEED)),--seed $(SEED))

lint: $(VENV)/.ready ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/.ready ## update the pinned versions under deploy/ from pyproject.toml
	$(COMPILE) --extra dev -o $(LOCK) pyproject.toml
	$(COMPILE) --extra train -c $(LOCK) -o $(TRAIN_LOCK) pyproject.toml

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "shopwindow: $(PYTHON) is not Python 3.11 or newer; install one, or name it:" \
	    "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test $$(df -Pk . | awk 'NR == 2 {print $$4}') -ge 2000000 || { \
	  echo "shopwindow: less than 2 GB are free here; free some, the installation takes 1.5 GB" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "shopwindow: $(PYTHON) cannot create a virtual environment here;" \
	    "on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python $(LOCK) pyproject.toml
	@echo "shopwindow: installing Python packages (once; it takes some minutes)"
	@$(BIN)/python -m pip install --require-hashes --retries 5 -r $(LOCK) || { \
	  echo "shopwindow: the packages could not be installed; check the network to pypi.org" \
	    "(the first run needs it) and run make again" >&2; exit 1; }
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(VENV)/.ready: $(VENV)/.installed
	@$(BIN)/python -m deploy.prepare
	@touch $@

$(VENV)/.ready-train: $(VENV)/.ready $(TRAIN_LOCK)
	@$(BIN)/python -m pip install --require-hashes --retries 5 -r $(TRAIN_LOCK) || { \
	  echo "shopwindow: torch could not be installed; check the network to pypi.org and run make again" >&2; exit 1; }
	@touch $@
