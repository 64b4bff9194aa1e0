# What to run when: see CONTRIBUTING.md, which also says how long each takes.

PYTHON ?= .venv/bin/python
bin := $(dir $(PYTHON))

.PHONY: help check lint types mypy pyright unit test test-all

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

check:                  ## before a commit: lint, types and the tests that need no server
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint mypy pyright unit

lint:                   ## ruff, the layers of the packages, luacheck
	$(bin)ruff check .
	$(bin)ruff format --check .
	$(bin)lint-imports --no-logo
	$(PYTHON) -m tests.support.luacheck

types: mypy pyright     ## mypy over all code, pyright over the package and, strictly, the examples

mypy:
	$(bin)mypy

pyright:
	$(bin)pyright --pythonpath $(PYTHON)

unit:                   ## the tests that need no server
	$(PYTHON) -m pytest -q tests/unit

test:                   ## before a pull request: all tests but the slow ones
	$(PYTHON) -m pytest -q

test-all:               ## all tests
	$(PYTHON) -m pytest -q -m ''
