# `make reproduce`: environment, the embedded suite computed live, the book about it. `make test`: the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIVE := $(CURDIR)/build/reproduce

# On a machine that is busy with something else, two threads of a small network wait for each other up to fifty times as long as
# they compute (a page took 19 minutes instead of one).
export OMP_NUM_THREADS ?= 1

.PHONY: env reproduce test lint book notebooks audit clean

env: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, do make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The embedded suite below build/reproduce is computed here and now: its committed results and weights are not looked at.
# The benchmark on real images took hours and data: its pages show the committed tables and experts. Interrupted, it goes on where it
# was; `make clean` starts over.
reproduce: env
	mkdir -p $(LIVE)/results $(LIVE)/zoo
	ln -sfn $(CURDIR)/results/thumb64 $(LIVE)/results/thumb64
	ln -sfn $(CURDIR)/results/benchmarks $(LIVE)/results/benchmarks
	ln -sfn $(CURDIR)/zoo/thumb64 $(LIVE)/zoo/thumb64
	MZLIB_HOME=$(LIVE) $(BIN)/mzlib run mini
	MZLIB_HOME=$(LIVE) $(BIN)/jupyter-book build -W --keep-going -n --all book/
	@echo "The book: file://$(CURDIR)/book/_build/html/index.html"

# The book from the committed results.
book: env
	$(BIN)/jupyter-book build -W --keep-going -n --all book/
	$(BIN)/python book/_ext/check_links.py
	@echo "The book: file://$(CURDIR)/book/_build/html/index.html"

# Two processes, a file of tests each at a time.
test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Form, spelling, types of the library, and that the library never imports the companion.
lint: env
	$(BIN)/ruff format --check mzlib tests benchmarks notebooks book/_ext
	$(BIN)/ruff check mzlib tests benchmarks notebooks book/_ext
	$(BIN)/codespell mzlib tests benchmarks book notebooks README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/lint-imports
	$(BIN)/mypy

# Both halves of every notebook from its .py:percent half.
notebooks: env
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

# The pinned packages against the public advisories; wants pypi.org.
audit: env
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --no-deps --strict -r requirements.txt

clean:
	rm -rf build book/_build
