# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long audit lint pictures install clean

demo: $(VENV)/.installed
	$(BIN)/distillhash demo

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -m long

# Known faults of the pinned packages; asks the advisory database of PyPI.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --strict --no-deps --disable-pip

lint: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# PHOTOGRAPHS: a source of images; see the script.
pictures: $(VENV)/.installed
	$(BIN)/python benchmarks/pictures.py $(PHOTOGRAPHS) --out docs/pictures

install: $(VENV)/.installed

# torch comes first, and pinned, so that nothing else drags in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("distillhash needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit demo build dist .mypy_cache .ruff_cache .pytest_cache
