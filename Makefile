# make demo   train the paper's speech network, scaled down, on a virtual cluster
# make test   run the tests        make check   lint, format, types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow check format bench clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.demo --workdir=$(RUNS)/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run --out=$(RUNS)/benchmarks

clean:
	rm -rf $(VENV) build *.egg-info

# Every dependency, at the versions of constraints.txt, in an environment of its own.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dbjax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[speech,digits,ray,sweep,dev]'
	@touch $@
