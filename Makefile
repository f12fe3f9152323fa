# `make quickstart` trains, asks and draws, `make quickstart-flow` with a JanusFlow; `make test` runs the tests. Each makes its own virtual environment.
PYTHON ?= python3

.PHONY: quickstart quickstart-flow test lint clean

quickstart: .venv/quickstart.done
	.venv/bin/python -m launch.quickstart --output=quickstart

quickstart-flow: .venv/quickstart.done
	.venv/bin/python -m launch.quickstart --model=flow

test: .venv/test.done
	.venv/bin/python -m pytest

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/%.done: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv quickstart quickstart-flow
