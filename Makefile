# `make quickstart` trains, asks and draws, `make quickstart-flow` with a JanusFlow; `make ablation-flow` adds to the
# latter what its alignment loss brings. `make test` runs the tests. Each makes its own virtual environment.
PYTHON ?= python3

.PHONY: quickstart quickstart-flow ablation-flow test lint clean

quickstart: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --output=quickstart

quickstart-flow: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --model=flow

ablation-flow: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --model=flow --ablation

test: .venv/test.done
	.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

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
