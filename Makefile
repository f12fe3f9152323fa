# make quickstart        trains a tiny Janus-Pro, asks it, lets it generate images, writes a report
# make quickstart-flow   does the same with a JanusFlow
# make ablation-flow     adds to the latter a comparison with and without the alignment loss
# make ablation          compares Janus with five arms that share or lack an encoder, in about half an hour
# make evaluate-demo     evaluates the quickstart's model on small benchmarks of digits
# make test              runs the tests, without the long ones
# make test-slow         runs the long tests
# make lint              runs formatter, linter and type checker
# Each makes the virtual environment .venv where it is missing.
PYTHON ?= python3
PYTEST = .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: quickstart quickstart-flow ablation-flow ablation evaluate-demo test test-slow lint clean

quickstart: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --output=quickstart

quickstart-flow: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --model=flow

ablation-flow: .venv/quickstart.done
	.venv/bin/python -m examples.digits.quickstart --model=flow --ablation

ablation: .venv/quickstart.done
	.venv/bin/python -m examples.digits.encoder_ablation.run --output=ablation

evaluate-demo: .venv/quickstart.done .venv/eval.done
	.venv/bin/python -m examples.digits.evaluate_demo

test: .venv/test.done
	$(PYTEST)

test-slow: .venv/test.done
	$(PYTEST) -m slow

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/%.done: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv quickstart quickstart-flow ablation evaluate-demo
