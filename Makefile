# Every verb of varlit as one word. Each target prints the command that it runs: the Makefile
# teaches the command line. `make` lists the targets; settings: GPUS CONF NAME DATA ARGS.

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
GPUS        ?= auto
CONF        ?=
NAME        ?=
DATA        ?=
ARGS        ?=
SEED        ?= 0
COUNT       ?= 10000
MINUTES     ?= 30

VARLIT = $(VENV)/bin/varlit
READY  = $(VENV)/.ready

# Fast tests share the cores; the slow ones start processes of their own and follow one by one.
# ARGS may name tests of one of the two parts alone: pytest's 5 is "no tests".
FAST_TESTS      = $(VENV)/bin/python -m pytest -q -n auto -m "not slow and not gpu and not soak"
SLOW_TESTS      = $(VENV)/bin/python -m pytest -q -m "slow and not gpu and not soak"
OR_NONE_OF_THEM = || test $$? -eq 5

# Names of recipes and runs where CONF and NAME are not given: runs/tokenizer-digits, runs/var-d16.
TOKENIZER_CONF = $(or $(CONF),imagenet256)
VAR_CONF       = $(or $(CONF),d16)
TOKENIZER_NAME = $(or $(NAME),tokenizer-$(call stem,$(TOKENIZER_CONF)))
VAR_NAME       = $(or $(NAME),var-$(call stem,$(VAR_CONF)))
DEVICES        = --gpus "$(or $(GPUS),auto)"

# make takes a space for the end of a name, so `stem` hides it as a bar.
space := $(subst ,, )
stem   = $(subst |,$(space),$(basename $(notdir $(subst $(space),|,$(1)))))

# A setting typed for targets that do not read it is a mistake: stop before any work.
takes_DATA = train-tokenizer train-var doctor
takes_GPUS = train-tokenizer cache-tokens train-var eval-fid eval-rfid
instead_DATA = they read the data of the run; give NAME=run, or CONF=recipe
instead_GPUS = they take one device, and the CPU after CUDA_VISIBLE_DEVICES= in front of make
ignored = $(if $(filter command,$(origin $(1))),$(if $(filter $(takes_$(1)),$(MAKECMDGOALS)),,$(if \
  $(MAKECMDGOALS),$(error $(1) is not read by: $(MAKECMDGOALS); $(instead_$(1)). $(1) is for: $(takes_$(1))))))
$(call ignored,DATA)
$(call ignored,GPUS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu test-soak check soak train-tokenizer cache-tokens train-var sample \
        eval-fid eval-rfid board fuzz doctor bench bench-gpu clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  GPUS=8 or 0 (CPU), default all    CONF=recipe    NAME=run    DATA=folder'
	@echo '  ARGS="--trainer.max_epochs 2" goes to the command as it stands'

setup: $(READY) ## Create .venv and install varlit (skipped when up to date)

$(READY): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "varlit: no $(PYTHON) here; install Python 3.11 or newer, or: make setup PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "varlit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make setup PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --only-binary :all: \
	  -e '.[dev]' -c $(CONSTRAINTS)
	$(VARLIT) doctor --pair
	@touch $@

demo: $(READY) ## Both stages on real digits: minutes on a laptop, ends with runs/demo/demo.png
	$(VARLIT) quickstart --out runs/demo --seed $(SEED) $(ARGS)

test: $(READY) ## Every test that needs no GPU, but for test-soak
	$(FAST_TESTS) $(ARGS) $(OR_NONE_OF_THEM)
	$(SLOW_TESTS) $(ARGS) $(OR_NONE_OF_THEM)

test-soak: $(READY) ## The longest tests: kills, restarts, thousands of files
	$(VENV)/bin/python -m pytest -q -m soak $(ARGS)

test-gpu: $(READY) ## The tests that need a GPU
	$(VENV)/bin/python -m pytest -q -m gpu $(ARGS)

check: $(READY) ## ruff, mypy, known vulnerabilities, the fast tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VARLIT) doctor --audit --pins $(CONSTRAINTS)
	$(FAST_TESTS) $(ARGS)

soak: $(READY) ## The pipeline under random kills, for MINUTES=30
	$(VENV)/bin/python -m tests.soak --minutes "$(MINUTES)" --seed "$(SEED)" $(ARGS)

train-tokenizer: $(READY) ## Stage 1            CONF=imagenet256|folder|digits DATA=photos/ GPUS=8
	$(VARLIT) tokenizer fit -c "$(TOKENIZER_CONF)" --name "$(TOKENIZER_NAME)" $(DEVICES) $(if $(DATA),--data.root "$(DATA)" )$(ARGS)

cache-tokens: $(READY) ## Images to tokens   CONF=... or NAME=tokenizer's run
	$(VARLIT) tokenizer predict --name "$(TOKENIZER_NAME)" $(DEVICES) $(ARGS)

train-var: $(READY) ## Stage 2            CONF=d16|d20|d24|d30|folder|digits DATA=token cache GPUS=8
	$(VARLIT) var fit -c "$(VAR_CONF)" --name "$(VAR_NAME)" $(DEVICES) $(if $(DATA),--data.tokens "$(DATA)" )$(ARGS)

sample: $(READY) ## Draw images         CONF=... or NAME=VAR's run ARGS="--cfg_scale 4"
	$(VARLIT) sample "$(VAR_NAME)" $(ARGS)

eval-fid: $(READY) ## FID of a VAR        CONF=... or NAME=run
	$(VARLIT) var test --name "$(VAR_NAME)" $(DEVICES) $(ARGS)

eval-rfid: $(READY) ## rFID of a tokenizer CONF=... or NAME=run
	$(VARLIT) tokenizer test --name "$(TOKENIZER_NAME)" $(DEVICES) $(ARGS)

board: $(READY) ## TensorBoard on runs/, every picture kept
	$(VENV)/bin/tensorboard --logdir runs --samples_per_plugin images=200 $(ARGS)

fuzz: $(READY) ## Files changed at random, read  COUNT=10000 SEED=0
	$(VENV)/bin/python -m tests.fuzz --count "$(COUNT)" --seed $(SEED) $(ARGS)

doctor: $(READY) ## What would break a run  CONF=d16 DATA=...; without: machine, data, weights
	$(VARLIT) doctor $(if $(CONF),-c "$(CONF)" )$(if $(DATA),--data "$(DATA)" )$(ARGS)

bench: $(READY) ## Benchmarks on the CPU  ARGS="--out benchmarks/results" keeps the tables
	$(VENV)/bin/python benchmarks/tokenizer_step.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/tokenizer_parts.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/var_step.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/var_parts.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/image_reading.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/token_reading.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/sampling_parts.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/var_against_raster.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/sampling.py --device cpu $(ARGS)
	$(VENV)/bin/python benchmarks/evaluation.py --device cpu $(ARGS)

bench-gpu: $(READY) ## Benchmarks on the GPU
	$(VENV)/bin/python benchmarks/tokenizer_step.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/tokenizer_parts.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/var_step.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/var_parts.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/image_reading.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/token_reading.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/sampling_parts.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/var_against_raster.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/sampling.py --device cuda $(ARGS)
	$(VENV)/bin/python benchmarks/evaluation.py --device cuda $(ARGS)

clean: ## Remove caches and builds (never runs/, data/ or .venv)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
