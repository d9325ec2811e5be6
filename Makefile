# The commands of the workbench; `make` alone lists them. Variables:
#   PYTHON=python3.12     the Python that creates .venv (3.11 to 3.13)
#   ACCELERATOR=cpu|gpu   the profile; the default is gpu if nvidia-smi lists a GPU, else cpu
#   WHEELHOUSE=FOLDER     install without a network from a folder that `make wheelhouse` filled
#   TORCH_INDEX=URL       an index with torch's CPU build, to use instead of PyTorch's own
#   CHECKED=1             make test-all after make check: leave out the tests that have passed
#   PROCESSES=1           run the tests with an engine one at a time, not two
PYTHON ?= python3
PROCESSES ?= 2
BIN := .venv/bin
PARALLEL := -n 3 --dist loadfile -p no:schemathesis
LONG := slow or browser
# Keep bytecode, whatever the shell sets: a run of the fast tests is 10 s shorter.
export PYTHONDONTWRITEBYTECODE :=
EXTENT := not ($(LONG))
AND_EXTENT = $(if $(EXTENT), and $(EXTENT))
FAST = not engine and not gpu and not timing and not clients$(AND_EXTENT)

help:  ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## create .venv with the pinned environment; the commands below run it themselves
	@$(PYTHON) scripts/install.py

wheelhouse:  ## fill wheelhouse/ for machines without a network: make setup WHEELHOUSE=FOLDER
	@$(PYTHON) scripts/wheelhouse.py

demo: setup  ## run notebook 02: vLLM replicas scale with a load; print the address of the report
	@$(BIN)/python -m workbench demo

lab: setup  ## start JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None $(if $(filter 0,$(shell id -u)),--allow-root)

check: setup  ## check style, types and notebooks and run the fast tests (two minutes)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target style fast

style:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/notebooks.py

long: override EXTENT = ($(LONG))
fast long:  # `long` is what `make check` leaves out.
	$(BIN)/pytest -q $(PARALLEL) -m "$(FAST)"

# With --keep-going each stage runs even if an earlier one has failed.
STAGES := --no-print-directory --keep-going
test: setup  ## run the tests, including those that need an engine
	@$(MAKE) $(STAGES) fast engine timing

test-all: setup browser  ## run all tests, with slow ones, browser, notebooks, clients and Rust front end
	-@$(BIN)/python scripts/rust_frontend.py  # Without it the tests that need it are skipped.
	@$(MAKE) $(STAGES) $(if $(CHECKED),long,fast) engine timing EXTENT=

# These have commands of their own.
ALONE := not gpu and not timing and not clients
# Each of these waits for loads, leases or autoscaling, which leaves the processor to a second one:
# `own` alone used 53 to 73 % of two cores. The longest come first. Where the slow tests are left out,
# no complete notebook and no client is run.
engine:
	@$(MAKE) --no-print-directory --keep-going --jobs=$(PROCESSES) --output-sync=target \
		shared own $(if $(EXTENT),,clients $(COMPLETE_NOTEBOOKS))
SLOWEST := --durations=25 --durations-min=20
COMPLETE := tests/notebooks/test_notebooks_whole.py
LONGEST := notebook-06 notebook-05 notebook-12 notebook-04
COMPLETE_NOTEBOOKS := $(shell sed -nE 's/^def test_notebook_([0-9]+)_.*/notebook-\1/p' $(COMPLETE))
COMPLETE_NOTEBOOKS := $(LONGEST) $(filter-out $(LONGEST),$(COMPLETE_NOTEBOOKS))
shared:
	$(BIN)/pytest $(SLOWEST) -m "engine and shared_cluster and $(ALONE)$(AND_EXTENT)"
own:
	$(BIN)/pytest $(SLOWEST) --ignore=$(COMPLETE) -m "engine and not shared_cluster and $(ALONE)$(AND_EXTENT)"
notebook-%:
	$(BIN)/pytest $(SLOWEST) $(COMPLETE) -k notebook_$*_
timing:
	$(BIN)/pytest $(SLOWEST) -m "timing and not gpu$(AND_EXTENT)"
clients:
	@$(BIN)/python scripts/clients.py
	CLIENTS_TABLE=docs/clients.md $(BIN)/pytest $(SLOWEST) tests/clients -m clients

test-clients: setup  ## test both paths with other projects' clients; write docs/clients.md
	@$(MAKE) --no-print-directory clients

coverage: setup  ## measure the branch coverage of the fast tests (ENGINE=1 adds those with an engine)
	$(BIN)/pytest -q --cov --cov-report=term --cov-report=html \
		$(if $(ENGINE),-m "$(ALONE)$(AND_EXTENT)",$(PARALLEL) -m "$(FAST)")

test-nodes: setup  ## test a cluster of three nodes on this machine, and its faults (13 minutes)
	$(BIN)/pytest tests/integration/several_nodes.py

test-browser: setup browser  ## test the notebooks in JupyterLab with headless Chromium
	$(BIN)/pytest -m browser

docs: setup  ## build the docs site and the slides in build/site
	@$(BIN)/python scripts/docs.py

gallery: setup  ## execute the notebooks and store their results for the docs site (ONLY="00 01"; an hour)
	@$(BIN)/python scripts/gallery.py $(ONLY)

bench: setup $(if $(filter browser_memory,$(or $(ONLY),browser_memory)),browser)  ## run the benchmarks and append to benchmarks/results/ (ONLY=name runs one)
	$(BIN)/python scripts/bench.py $(ONLY)

claims: setup  ## write docs/claims.md and its summary in the README (RUNS="runs/A runs/B" archives these first)
	$(BIN)/python -m workbench claims $(RUNS)

rust-frontend: setup  ## fetch vLLM's Rust front end, which vLLM's CPU build does not have (300 MB)
	@$(BIN)/python scripts/rust_frontend.py

browser:  ## install Chromium for the browser tests, if it is missing
	@scripts/browser.sh

extension: setup  ## build the JupyterLab extension after a change in extension/ (UPGRADE=1: newest packages)
	$(BIN)/python scripts/extension.py

lock:  ## update the lock files from pyproject.toml (UPGRADE=1 takes the newest versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 packaging==26.3
	PATH=build/lock/bin:$$PATH python scripts/lock.py $(if $(UPGRADE),--upgrade)

audit: setup  ## look for known vulnerabilities (AUDIT=options of pip-audit); write docs/licenses.md
	$(BIN)/python scripts/licenses.py
	$(BIN)/python scripts/audit.py $(AUDIT)

image-test:  ## build deploy/Dockerfile with Buildah on a base of debootstrap, and use it (root; 10 minutes)
	$(PYTHON) scripts/image_test.py

clean:  ## remove .venv, runs and caches; keep notebooks and results
	rm -rf .venv build runs *.egg-info .*_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.PHONY: help setup wheelhouse demo lab check style fast test test-all long engine shared own timing clients test-clients coverage test-nodes test-browser docs gallery bench claims rust-frontend browser extension lock audit image-test clean
