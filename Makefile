# All that one does with the workbench. `make` alone lists it.
#   PYTHON=python3.12     which Python makes .venv (3.11 to 3.13)
#   ACCELERATOR=cpu|gpu   the profile; without it: gpu where an NVIDIA GPU is found
#   WHEELHOUSE=FOLDER     install from a folder that `make wheelhouse` filled, without a network
#   TORCH_INDEX=URL       where torch's CPU build is found, if pip's own index has none
PYTHON ?= python3
BIN := .venv/bin

help:  ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## make .venv with the pinned environment; the commands below do it themselves
	@$(PYTHON) scripts/install.py

wheelhouse:  ## fill wheelhouse/ for machines without a network: make setup WHEELHOUSE=FOLDER
	@$(PYTHON) scripts/wheelhouse.py

demo: setup  ## watch real vLLM replicas come and go under a load (notebook 02), show what happened
	@$(BIN)/python -m workbench demo

lab: setup  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None $(if $(filter 0,$(shell id -u)),--allow-root)

check: setup  ## style, types, clean notebooks, fast tests: within a minute
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target style fast

style:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/notebooks.py

fast:  # with bytecode kept between runs, whatever the shell says: 10 s less
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n 3 --dist loadfile -p no:schemathesis -m "not engine and not slow and not browser and not gpu and not timing"

test: setup  ## the tests, on a real engine
	$(BIN)/pytest -m "not slow and not browser and not gpu"

test-all: setup browser  ## and what is slow: browser, every notebook whole
	$(BIN)/pytest --begin-within=55 --durations=25 --durations-min=20 -m "not gpu"

test-nodes: setup  ## three nodes on this machine, and what each fault costs (13 minutes)
	$(BIN)/pytest tests/integration/several_nodes.py

test-browser: setup browser  ## the notebooks by hand: JupyterLab in headless Chromium
	$(BIN)/pytest -m browser

bench: setup $(if $(filter browser_memory,$(or $(ONLY),browser_memory)),browser)  ## every benchmark, appended to benchmarks/results/ (ONLY=name runs one)
	$(BIN)/python scripts/bench.py $(ONLY)

claims: setup  ## write docs/claims.md and the README's summary of it from the kept runs (RUNS="runs/A runs/B" keeps these first)
	$(BIN)/python -m workbench claims $(RUNS)

browser:  ## install Chromium for the browser tests, if it is missing
	@scripts/browser.sh

lock:  ## pin requirements/ anew from pyproject.toml (UPGRADE=1 takes the newest versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 packaging==26.3
	PATH=build/lock/bin:$$PATH python scripts/lock.py $(if $(UPGRADE),--upgrade)

clean:  ## remove .venv, runs and caches; notebooks and results stay
	rm -rf .venv build runs *.egg-info .*_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.PHONY: help setup wheelhouse demo lab check style fast test test-all test-nodes test-browser bench claims browser lock clean
