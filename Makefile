# Rerail: `make` lists the targets.
PYTHON ?= python3
VENV_PYTHON = .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check fix gen pin cluster cluster-down kind-up kind-down images bundle bench bench-trainer chaos chaos-nodes

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## set up and watch a job lose a rank and finish from its checkpoint
	@$(PYTHON) scripts/demo.py

test: ## set up and run every ring of tests that this machine can run
	@$(PYTHON) scripts/rings.py

test-fast: ## core, contract on the in-memory cluster, chaos in memory, repository: a minute, no torch
	@$(PYTHON) scripts/rings.py --without-torch fast

check: ## style, types, import contracts, generated files
	@$(PYTHON) scripts/rings.py check

fix: ## format, and fix what can be fixed
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet .

gen: ## write the generated files: CRD, API reference
	@$(VENV_PYTHON) -m rerail_api.crd --write
	@$(VENV_PYTHON) -m rerail_api.reference --write
	@$(VENV_PYTHON) -m rerail_operator.shell.reasons_page --write
	@$(VENV_PYTHON) -m rerail_operator.shell.failures_page --write

pin: ## pin all dependencies anew
	@sh scripts/pin.sh

cluster: ## a real Kubernetes on this machine with Rerail installed (Linux, root, Go)
	@$(PYTHON) scripts/rings.py --setup-only --without-torch
	@$(VENV_PYTHON) -m tests.cluster.rig up --nodes 2 --gpus 8 --install

cluster-down: ## take it down
	@$(VENV_PYTHON) -m tests.cluster.rig down

kind-up: ## Rerail in a kind cluster with pretended GPUs (Docker, kind)
	@$(PYTHON) scripts/kind.py up

kind-down: ## take the kind cluster down
	@$(PYTHON) scripts/kind.py down

images: ## REGISTRY=... [TAG=...]: build and push both images, print the chart's values
	@REGISTRY="$(REGISTRY)" TAG="$(TAG)" $(PYTHON) scripts/images.py

bundle: ## one archive with images, chart and CRD for a site without internet
	@$(PYTHON) scripts/bundle.py

bench-trainer: ## the trainer's speed on whatever is here, where a step's time goes, and the loop against a plain one
	@$(PYTHON) scripts/rings.py --setup-only
	@$(VENV_PYTHON) -m bench.trainer

chaos-nodes: ## twenty lives on real nodes, hurt at random moments (Linux, root, Go; a quarter of an hour)
	@$(PYTHON) scripts/rings.py --setup-only --without-torch
	@$(VENV_PYTHON) -m tests.chaos nodes

bench: ## restarts in place up to 18,750 agents; gang start and restart at 200 and 1,875 nodes against the floor (Go)
	@$(PYTHON) scripts/rings.py --setup-only --without-torch
	@$(VENV_PYTHON) -m bench

chaos: ## seeded lives in memory, every write point of the operator, lives of real processes (ARGS="run --seed 7": one again)
	@$(PYTHON) scripts/rings.py --setup-only
	@$(VENV_PYTHON) -m tests.chaos $(ARGS)
