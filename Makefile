# Every target makes its own set-up. `make` or `make help` lists them.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
AIM := $(BIN)/aim-lightning
RUN ?= main
ARGS ?=
PORT ?= 6006
SOURCE ?= /usr/share/datasets/fashion-mnist
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install install-cuda demo test test-gpu lint format train validate sample tokenize config tensorboard \
	data-fashion-mnist doctor bench clean

help: ## List the targets and their variables
	@echo 'usage: make TARGET [VARIABLE=value …]'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'variables: EXP = a file of experiments/ without .yaml; RUN = name of the run [$(RUN)];'
	@echo '           ARGS = options of the command, e.g. ARGS="--trainer.max_epochs 2"; PYTHON [$(PYTHON)]; VENV [$(VENV)]'

# Made anew when pyproject.toml changes; the stamp appears only after everything is installed.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || { echo 'making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo 'installing into $(VENV) (several GB, some minutes the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Install for CPU and plain PyTorch on GPUs

install-cuda: install ## Add the CUDA kernels (torch first, then mamba-ssm and causal-conv1d without build isolation)
	$(BIN)/python -m pip install --disable-pip-version-check wheel packaging ninja
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -e '.[cuda]'
	$(AIM) doctor

demo: install ## Main job on the embedded pictures: both stages, samples and scores, on a CPU in minutes
	@PYTHON=$(BIN)/python bash experiments/demo.sh

test: install ## All tests that need no GPU (TEST_ARGS="-k name" for some)
	$(BIN)/python -m pytest -m "not gpu" $(TEST_ARGS)

test-gpu: ## Tests that need an NVIDIA GPU, in the environment of PYTHON=…
	$(PYTHON) -m pytest -m gpu $(TEST_ARGS)

lint: install ## Check style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: install ## Format the source and mend what can be mended
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# $(call experiment,command): stops with one line when EXP is missing.
experiment = $(if $(EXP),$(AIM) $(1) --config experiments/$(EXP).yaml --run $(RUN) $(ARGS),$(error set EXP to one of: $(basename $(notdir $(wildcard experiments/*.yaml)))))

train: install ## Train EXP, or continue its RUN (EXP, RUN, ARGS)
	@$(call experiment,fit)

validate: install ## Score the newest checkpoint of RUN (EXP, RUN, ARGS)
	@$(call experiment,validate)

sample: install ## Draw pictures from RUN (EXP, RUN, ARGS='--classes "sneaker,bag"')
	@$(call experiment,sample)

tokenize: install ## Turn pictures into token shards with RUN's tokenizer (EXP, RUN, ARGS)
	@$(call experiment,tokenize)

config: install ## Print the composed configuration of EXP (EXP, RUN, ARGS)
	@$(call experiment,config)

tensorboard: install ## Show curves and pictures of all runs (PORT)
	$(BIN)/tensorboard --logdir runs --port $(PORT)

data-fashion-mnist: install ## Full Fashion-MNIST as image shards (SOURCE = folder of its IDX files)
	$(BIN)/python -m aim_lightning.data.images.fashion_mnist --source $(SOURCE) --out data/fashion_mnist

doctor: install ## Print versions, devices and usable kernels
	@$(AIM) doctor

bench: install ## Measure data and scan speed on this machine (benchmarks/)
	$(BIN)/python benchmarks/tokens.py
	$(BIN)/python benchmarks/scan.py

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .cache
