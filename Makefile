# The commands of this repository; `make` lists them. Each installs what it misses or says what to install.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

# PROFILE=gpu: the same recipe at evidence size, with NVIDIA kernels (docs/cuda.md)
PROFILE ?= cpu
ifeq ($(PROFILE),gpu)
EXAMPLE := examples/quickstart-gpu
FEATURES := --features s3-model/cuda,s3-retriever/cuda,s3-generator-gateway/cuda,s3-trainer/cuda,s3-evaluator/cuda
else ifeq ($(PROFILE),cpu)
EXAMPLE := examples/quickstart
FEATURES :=
else
$(error PROFILE is '$(PROFILE)'; it can be cpu or gpu)
endif

export S3_DATA ?= $(CURDIR)/.s3/data
FETCH := python3 examples/quickstart/data/fetch.py
PHASE := tests/tools/phase.sh
S3 := target/release/s3

.PHONY: help quickstart deps build data data-qwen test test-cluster test-e2e test-e2e-cel lint bench report soak clean-state

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

quickstart: ## build, fetch the data, train, evaluate, report; PROFILE=gpu: at evidence size
	@rm -f .s3/phases
	$(PHASE) dependencies tests/tools/needs.sh
	$(PHASE) build $(MAKE) build
	$(PHASE) data $(FETCH) quickstart
	status=0
	$(PHASE) run $(S3) run $(EXAMPLE) --volume data="$(S3_DATA)" --volume assets=examples/quickstart \
	    || status=$$?
	$(PHASE) --summary >&2
	exit $$status

deps: ## compiler, Python and pip: installs them with apt as root, else says what to install
	@tests/tools/needs.sh

build: deps ## every binary, optimised, in target/release
	@cargo build --release --locked --workspace --bins $(FEATURES)

data: deps ## models, corpus and questions of quickstart and tests, to .s3/data ($S3_DATA)
	@$(FETCH) quickstart minilm

data-qwen: deps ## the optional larger searcher, Qwen2.5-Coder-0.5B-Instruct (478 MB)
	@$(FETCH) qwen

test: data ## every test of the workspace
	@tests/tools/needs.sh --tests
	@python3 -m unittest discover -q -s examples/quickstart/data
	cargo test --locked --workspace

test-cluster: deps ## the tests against a real Kubernetes API server, started for them and ended
	@tests/cluster/test.sh

test-e2e: data ## chart, operator and quickstart on a real Kubernetes node of its own; as root
	@tests/cluster/e2e.sh

test-e2e-cel: data ## the same with a CRD server that evaluates the rules (Kubernetes 1.36's)
	@tests/cluster/e2e.sh --cel

lint: deps ## formatting, clippy without warnings, generated files and lists up to date
	@cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features s3-tests/cluster,s3-tests/e2e -- -D warnings
	tests/lint/all.sh

bench: deps ## NAME=…: one benchmark beside its peer; without NAME: their names
	@tests/bench.sh $(NAME)

report: ## the report page of the last run
	@[[ -x $(S3) ]] || $(MAKE) build
	$(S3) report

soak: data data-qwen ## the long tests (marked ignored): hours, not for every change
	@cargo test --locked --release --workspace -- --ignored
	S3_FAULT_PLANS=600 S3_FAULT_SIDE_BY_SIDE=12 tests/cluster/test.sh faults
	S3_USER_SEQUENCES=80 tests/cluster/test.sh users
	S3_RESTARTS=all tests/cluster/test.sh restart:: -- --ignored

clean-state: ## forget all runs; the fetched data stay
	@[[ ! -d .s3 ]] || find .s3 -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
