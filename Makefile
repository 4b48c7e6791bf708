# Every target sets up what it needs in .venv and does nothing for what is already there.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_WORKERS ?= 2
# Tests of boards wait for boards more than they compute.
BOARD_WORKERS ?= 4
# What MXNet, whose networks the zoo's are checked against, can be installed for.
PYTHON311 ?= python3.11

.PHONY: help setup demo test test-slow test-boards test-originals lint format bench originals lock clean

help:
	@echo "make demo    simulated boards: deploy, bench, run a picture (light install)"
	@echo "make test    the tests that need neither hardware nor patience (full install)"
	@echo "make test-slow  the tests that compile whole networks, again and again"
	@echo "make test-boards  emulated ARM boards, provisioned and benched (as root; needs mmdebstrap and qemu-user-static)"
	@echo "make test-originals  the zoo's networks beside MXNet's own, on PARITY_PICTURES (20) pictures"
	@echo "make lint    ruff and mypy        make format  rewrite the layout"
	@echo "make bench   the performance tables of README"
	@echo "make originals  MXNet and GluonCV in an environment of their own: tests compare the zoo with them"
	@echo "make lock    resolve requirements/*.lock again"

setup:
	@scripts/setup.sh full $(PYTHON)

demo:
	@scripts/setup.sh demo $(PYTHON)
	@scripts/demo.sh

test: setup
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not slow and not originals and not boards"

test-slow: setup
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile -m slow

test-boards: setup
	$(BIN)/pytest -n $(BOARD_WORKERS) --dist loadscope -m boards tests/boards tests/integration/test_provision.py

test-originals: setup originals
	$(BIN)/pytest -m originals tests/integration

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

originals:
	@scripts/originals.sh $(PYTHON311)

lock: setup
	scripts/lock.sh

clean:
	rm -rf .venv .demo build dist *.egg-info
