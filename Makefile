# Two commands are enough: `make demo` and `make test`. Both make their own virtual environment first.
# MINUTES=60 OUT=runs/hour makes a longer demo in a folder of its own.
# WORKERS=4 runs tests in four processes, a file each at a time.
# INDEX=URL adds a package index; PyTorch's CPU-only builds are at https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV   ?= .venv
INDEX  ?=
MINUTES ?= 10
OUT ?= runs/demo
WORKERS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
SPLIT := -n $(WORKERS) --dist loadfile
PIP_INDEX := $(if $(INDEX),--extra-index-url $(INDEX))

.PHONY: demo test fast lint types check setup clean
demo: $(VENV)/installed
	$(BIN)/sfumato demo --minutes $(MINUTES) --out "$(OUT)" --resume

test: $(VENV)/developed check
	$(BIN)/python -m pytest -q $(SPLIT)

fast: $(VENV)/developed check
	$(BIN)/python -m pytest -q $(SPLIT) -m "not slow"

check: $(VENV)/developed lint types
lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(VENV)/developed
	$(BIN)/mypy

setup: $(VENV)/developed

$(VENV)/bin/python:
	@$(PYTHON) tools/preflight.py "$(INDEX)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install -q $(PIP_INDEX) -c requirements.txt -e .
	@touch $@

$(VENV)/developed: $(VENV)/installed
	$(BIN)/python -m pip install -q $(PIP_INDEX) -c requirements.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info
