# Everything a user or developer runs. Each target sets up what it needs; nothing has to be done by hand before.

PYTHON ?= python3.11
VENV   ?= .venv
# Where torch comes from. On a machine without a GPU, the address of PyTorch's CPU-only package index (its
# installation page has it) saves gigabytes of CUDA libraries.
TORCH_INDEX ?=
TORCH_VERSION := 2.13.0

TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# torch is left out of the lock files: which build is right depends on the machine (see TORCH_INDEX). What redis needs
# on Python 3.11.0 to 3.11.2, such as Debian 12's own, is put in: pip-compile on a later Python leaves it out.
ASYNC_TIMEOUT := 'async-timeout==5.0.1 ; python_full_version < "3.11.3"' \
  --hash=sha256:39e3809566ff85354557ec2398b55e096c8364bacac9405a7a1fa429e77fe76c \
  --hash=sha256:d9321a7a3d5a6a5e187e824d2fa0793ce379a202935782d555d6e9d2735677d3
define compile
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	  --constraint $(VENV)/constraints.txt --extra $(1) --output-file $(2) pyproject.toml
	sed -i '/^torch==/,/[^\\]$$/d' $(2)
	printf '%s \\\n    %s \\\n    %s\n' $(ASYNC_TIMEOUT) >> $(2)
endef

.PHONY: help demo serve test check cluster-test k8s-check load dashboard-check image-test bench bench-engine bench-first-token bench-models \
  format lock clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

$(VENV)/.run: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes a minute or two) ..."
	$(PIP) install --upgrade pip
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	touch $@

demo: $(VENV)/.run ## Start the service, ask questions about a real video, stop
	$(BIN)/python -m services.demo

serve: $(VENV)/.run ## Start the service on 127.0.0.1:8000; Ctrl-C stops it
	$(BIN)/fastervlm-video serve

check: $(VENV)/.dev ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## All checks and all tests, those without a running service in TEST_PROCESSES (2) processes
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --ignore tests/integration
	$(BIN)/python -m pytest tests/integration

cluster-test: $(VENV)/.dev ## Tests of whole Ray clusters, minutes each: scaling, four nodes, changes in place, a deployment
	CLUSTER_TESTS=1 $(BIN)/python -m pytest tests/cluster

load: $(VENV)/.dev ## Two minutes of load: latencies, errors, a report; LOAD_SHAPE, LOAD_MIX, LOAD_USERS, LOAD_SECONDS
	$(BIN)/python -m tests.load

dashboard-check: $(VENV)/.dev ## Whether every panel of the Grafana dashboard has data; needs Debian's prometheus
	$(BIN)/python -m scripts.check_dashboard

k8s-check: $(VENV)/.dev ## Build and check the Kubernetes manifests; needs kubectl
	K8S_CHECK=1 $(BIN)/python -m pytest tests/k8s

image-test: $(VENV)/.run ## Build the container image without a container engine and run it, as root on Debian
	$(BIN)/python -m scripts.image_test --torch-index "$(TORCH_INDEX)" --torch-version $(TORCH_VERSION)

bench: $(VENV)/.run ## Cost of 8 frames out of 10 seconds, 1, 10 and 60 minutes
	$(BIN)/python benchmarks/decode_seek.py

bench-engine: $(VENV)/.run ## The language engine against generate, one by one and in static batches
	$(BIN)/python benchmarks/engine.py --quick

bench-first-token: $(VENV)/.run ## Time to the first token, all visual tokens against few
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/first_token.py --quick --repeats 1

bench-models: $(VENV)/.run ## Each architecture at its published 7B dimensions, each half in its own process
	$(BIN)/python benchmarks/real_dimensions.py

format: $(VENV)/.dev ## Fix formatting and what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.dev ## Write the lock files anew from pyproject.toml
	$(PIP) install pip-tools
	echo "torch==$(TORCH_VERSION)" > $(VENV)/constraints.txt
	$(call compile,serve --extra eval --extra s3,requirements.lock)
	$(call compile,serve --extra eval --extra dev --constraint requirements.lock,requirements-dev.lock)

clean: ## Remove the environment and what was made by tests and the demo
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output load-report build *.egg-info
