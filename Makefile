# All that one does with the workbench. `make` alone lists it.
#   PYTHON=python3.12     which Python makes .venv (3.11 to 3.13)
#   ACCELERATOR=cpu|gpu   the profile; without it: gpu where an NVIDIA GPU is found
#   TORCH_INDEX=URL       where torch's CPU build is found, if pip's own index has none
PYTHON ?= python3
BIN := .venv/bin

help:  ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## make .venv with the pinned environment; the commands below do it themselves
	@$(PYTHON) scripts/install.py

demo: setup  ## deploy a real vLLM engine, talk to it from notebook 00, show what happened
	@$(BIN)/python -m workbench demo

lab: setup  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None $(if $(filter 0,$(shell id -u)),--allow-root)

check: setup  ## style, types, clean notebooks, fast tests: within a minute
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/notebooks.py
	$(BIN)/pytest -q -m "not engine and not slow and not browser and not gpu"

test: setup  ## the tests, on a real engine
	$(BIN)/pytest -m "not slow and not browser and not gpu"

test-all: setup browser  ## and what is slow: browser, faults, every notebook whole
	$(BIN)/pytest -m "not gpu"

bench: setup  ## every benchmark, appended to benchmarks/results/ (ONLY=name runs one)
	$(BIN)/python scripts/bench.py $(ONLY)

browser:  ## install Chromium for the browser tests, if it is missing
	@scripts/browser.sh

lock:  ## pin requirements/ anew from pyproject.toml (UPGRADE=1 takes the newest versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 packaging==26.3
	PATH=build/lock/bin:$$PATH python scripts/lock.py $(if $(UPGRADE),--upgrade)

clean:  ## remove .venv, runs and caches; notebooks and results stay
	rm -rf .venv build runs *.egg-info .*_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.PHONY: help setup demo lab check test test-all bench browser lock clean
