# make demo: install where needed, and run the demo. make test: install where needed, and run the tests.
.PHONY: help demo test test-slow test-lowest bench bench-peers lint format clean
PYTHON ?=
export PYTHON
problem = $(shell sh scripts/install.sh check)
require = $(if $(problem),$(error $(problem)))

help:
	@echo "make demo    train a small model, look at what it does not know, and at what to label next"
	@echo "make test    run the tests"
	@echo "make test-slow   runs the slow ones: processes that are killed, simulations of coverage, the examples (some minutes)"
	@echo "make test-lowest   runs the tests with the lowest versions that pyproject.toml allows, in an environment of its own"
	@echo "make bench   measure what is measured in benchmarks/README.md (some minutes; hours with SEGUQ_DATA)"
	@echo "make bench-peers    the same of MC dropout, metrics and calibrators beside other libraries, in an environment of its own"
	@echo "make lint    check style and types"
	@echo "make format  put the code into form"
	@echo "make clean   remove the virtual environment and what the demo wrote"

demo:
	$(require)@sh scripts/install.sh demo
	@.venv/bin/python -m seguq demo --out demo-out

test:
	$(require)@sh scripts/install.sh dev
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow:
	$(require)@sh scripts/install.sh dev
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 -m slow

test-lowest:
	$(require)@sh scripts/install.sh lowest
	@OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench:
	$(require)@sh scripts/install.sh bench
	@.venv/bin/python benchmarks/callbacks.py
	@.venv/bin/python benchmarks/mc_dropout.py
	@.venv/bin/python benchmarks/selection.py
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/estimators.py
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/temperature.py
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/calibration.py --images 20
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/calibration_worth.py
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/metrics.py

bench-peers:
	$(require)@sh scripts/install.sh peers
	@.venv-peers/bin/python benchmarks/mc_dropout.py
	@OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/metrics.py
	@OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/calibration.py --only speed
	@OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/calibration_worth.py

lint:
	$(require)@sh scripts/install.sh dev
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy

format:
	$(require)@sh scripts/install.sh dev
	@.venv/bin/python -m ruff check --fix .
	@.venv/bin/python -m ruff format .

clean:
	@rm -rf .venv .venv-lowest .venv-peers demo-out
