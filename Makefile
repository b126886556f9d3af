# What a user runs. Everything that a fresh machine lacks is installed first; the build lies outside the checkout.
CARGO_TARGET_DIR ?= $(HOME)/.cache/freshet/target
export CARGO_TARGET_DIR
export PATH := $(HOME)/.cargo/bin:$(PATH)
BIN := $(CARGO_TARGET_DIR)/release/freshet
ARGS ?=

.PHONY: help setup model build bin demo test stack s3 e2e docs

help:
	@echo "make demo ARGS=\"...\"   runs everything in one process on made-up data (ARGS: see $(notdir $(BIN)) demo --help)"
	@echo "make test              runs every test"
	@echo "make stack             checks the files of the stack: compose, Kubernetes, Prometheus's rules"
	@echo "make s3                runs against an S3-compatible store (SeaweedFS): tests and kills"
	@echo "make e2e               runs against real peers: Kafka, Debezium, a registry, PostgreSQL, MariaDB"
	@echo "make docs              runs the commands of the runbook and the onboarding that can be run here"
	@echo "make build             builds the program"
	@echo "make -s bin            prints the path of the built program"
	@echo "make model             fetches the embedding model"

setup:
	@scripts/setup.sh

model: setup
	@scripts/model.sh

build: setup
	cargo build --release --locked

bin:
	@echo $(BIN)

demo: model build
	$(BIN) demo $(ARGS)

test: model
	cargo test --release --locked

stack:
	@tests/stack/check.sh

s3: model build
	python3 -B tests/peers/s3.py $(BIN) $(ARGS)

e2e: model build
	python3 -B tests/peers/e2e.py $(BIN) $(ARGS)

docs: model build
	python3 -B tests/peers/docs.py $(BIN)
