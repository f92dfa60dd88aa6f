# `make run` and `make test` are all a fresh machine needs: Python >= 3.11, git, make and a package index.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup

setup: $(VENV)/.installed

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Butterfly needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==$(UV_VERSION)

$(VENV)/.installed: pyproject.toml uv.lock | $(VENV)/bin/uv
	$(BIN)/uv sync --frozen --quiet --inexact
	touch $@
