# make demo   train the paper's speech network, scaled down, on a virtual cluster
# make test   run the tests        make check   lint, format, types
# make test PYTHON=python3.13 TESTS=tests/parameter_server   with another Python, some of them
PYTHON ?= python3
# An environment for each Python: .venv for python3, .venv-3.13 for a PYTHON= that is a 3.13.
ifneq ($(PYTHON),python3)
VERSION := -$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
VENV ?= .venv$(VERSION)
TESTS ?=
BIN := $(VENV)/bin
RUNS ?= runs
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow check format bench clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.demo --workdir=$(RUNS)/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

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
