# Two commands for newcomers: `make run` and `make test`. Each builds .venv if it is not there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
PACKAGING := pyproject.toml constraints.txt
RUN_OUT ?= runs/quickstart
RUN_FLAGS ?=
FLOW_TIME ?= $(if $(findstring --quick,$(RUN_FLAGS)),240,600)

# A second run, of mini-batches with weight decay, that settles while its weights keep moving.
MINIBATCH := --steps 6000 --batch-size 16 --model.depth 2 --model.width 32 --rule.lr 0.3 --rule.weight-decay 0.02 \
  --track.eigenvalues 0 --track.every 50 --probe.every 60 --probe.batches 8 --probe.observables 20

.PHONY: run test fast lint bench docs clean
.DELETE_ON_ERROR:

run: $(VENV)/.ready-run
	$(BIN)/thalweg run --out $(RUN_OUT) --replace --checkpoint-every 10 $(RUN_FLAGS)
	-$(BIN)/thalweg flow $(RUN_OUT) --time $(FLOW_TIME)  # a run with mini-batches has no forecast, and is still a run
	$(BIN)/thalweg run --out $(RUN_OUT)-minibatch --replace $(MINIBATCH)
	$(BIN)/thalweg stationarity $(RUN_OUT)-minibatch

# One thread: on tensors of this size a second one only waits, and takes the core from whatever else runs.
test: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=40

fast: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not browser"

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/hvp.py

docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-run: $(PACKAGING) | $(BIN)/python
	@echo "Installing thalweg into $(VENV) (once; torch is large)"
	$(PIP) -e ".[digits]"
	@touch $@

$(VENV)/.ready-test: $(PACKAGING) | $(BIN)/python
	@echo "Installing thalweg and its test tools into $(VENV) (once)"
	$(PIP) -e ".[dev,data,hf]"
	@touch $@

$(VENV)/.ready-docs: $(PACKAGING) | $(BIN)/python
	$(PIP) -e ".[docs]"
	@touch $@
