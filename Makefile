# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long coverage docs audit lint pictures install clean

demo: $(VENV)/.installed
	$(BIN)/distillhash demo

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -m long

# Which lines and branches of src the tests reach; fails below the floor in pyproject.toml. An hour on 2 cores.
coverage: $(VENV)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not long" --numprocesses 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The site in build/site; a warning, a broken link or a page or public name left out fails it.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --conf-dir docs . build/site
	@echo "open build/site/index.html"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

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
