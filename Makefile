# Every target with what it does: `make help`. PRESET, SEED and the like are passed on: make train PRESET=scenes SEED=1
PYTHON ?= python3
BIN := .venv/bin
CHOSEN := $(PRESET)
PRESET ?= $(if $(filter ablation tables table-%,$(MAKECMDGOALS)),ablation,demo)
SEED ?= 0
DEVICE ?= cpu
# of reproduce-kitti and reproduce-sintel: the row of Table 1, and options of `unsamflow reproduce`
VARIANT ?= aug-hg-mf
OPTIONS ?=
SEEDS ?= 3
RUN ?= evaluate
# label: file or name of shipped weights, ...; all the shipped ones
WEIGHTS ?= {$(foreach name,$(basename $(notdir $(wildcard data/weights/*.safetensors))),$(name): $(name),)}
READY := .venv/.ready
# threads that wait should sleep: spinning ones stall each other as soon as the machine does anything else
export OMP_WAIT_POLICY ?= PASSIVE
.PHONY: help setup demo train evaluate evaluate-real working-size tables figures timing benchmark test check export docs lock clean reproduce-kitti reproduce-sintel
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([^:]+):[^#]*## /  make \1\t/' | expand -t 22

setup: $(READY) ## install into .venv, from the lock file
$(READY): requirements.lock pyproject.toml
	@echo 'Installing into .venv (PyTorch is large: two minutes or more) ...' && $(PYTHON) -m venv .venv && $(BIN)/pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock && $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . && touch $@

demo: $(READY) ## train from scratch on rendered scenes, evaluate, write results/demo: ten minutes on two cores
	@$(BIN)/unsamflow demo

train: $(READY) ## train PRESET with SEED into results/PRESET/seed-SEED, or go on training
	@$(BIN)/unsamflow run train preset=$(PRESET) seed=$(SEED) --folder results/$(PRESET)/seed-$(SEED)

evaluate: $(READY) ## evaluate what `make train` with the same PRESET and SEED has trained
	@$(BIN)/unsamflow run evaluate weights=results/$(PRESET)/seed-$(SEED)/weights.safetensors --folder results/$(PRESET)/seed-$(SEED)/evaluate

evaluate-real: $(READY) ## every method and all shipped WEIGHTS on the pairs that [paths] data of settings.ini leads to: results/real/RUN
	@$(BIN)/unsamflow run evaluate datasets=real 'weights=$(WEIGHTS)' 'methods=[zero flow, Farneback, DIS, DeepFlow, PCAFlow, ours]' pictures=0 --folder results/real/$(RUN) --again

ablation: $(READY) ## train and evaluate every variant of PRESET (default: ablation) with SEEDS seeds (default: 3), from one baseline a seed
	@$(BIN)/unsamflow ablation $(PRESET) --seeds $(SEEDS)

working-size: $(READY) ## the shipped weights on the real pairs at many sizes, and the rule that follows: results/real/working-size
	@$(BIN)/unsamflow run working-size --folder results/real/working-size --again

table-%: $(READY) ## regenerate one table from the runs in results: table-1 to table-7, table-steps, table-scenes, table-real
	@$(BIN)/unsamflow run tables tables=[table-$*] preset=$(PRESET) --folder results/tables/table-$* --again

reproduce-kitti: $(READY) ## the paper's KITTI run: archives, lists, masks, training, evaluation, submissions; prints its plan first. OPTIONS='--archives FOLDER --processes 8'
	@$(BIN)/unsamflow reproduce kitti-$(VARIANT) --seed $(SEED) $(OPTIONS)

reproduce-sintel: $(READY) ## the same for Sintel: both folds, and the model for the test set
	@$(BIN)/unsamflow reproduce sintel-$(VARIANT) --seed $(SEED) $(OPTIONS)

tables: $(READY) ## regenerate every table from the runs in results; with a PRESET, say demo, first what is missing of its ablation
	@$(if $(CHOSEN),$(BIN)/unsamflow ablation $(PRESET) &&) $(BIN)/unsamflow run tables preset=$(PRESET) --folder results/tables$(if $(CHOSEN),-$(PRESET)) --again

figures: $(READY) ## draw the paper's figures again from the runs in results
	@$(BIN)/unsamflow run figures --folder results/figures --again

timing: $(READY) ## measure time, memory and operations on this machine
	@$(BIN)/unsamflow run timing --folder results/timing --again

benchmark: $(READY) ## every fast path beside its plain version, growth, and a GPU's ways with DEVICE=cuda: results/benchmark
	@OMP_NUM_THREADS=2 $(BIN)/unsamflow run benchmark device=$(DEVICE) --folder results/benchmark/$(DEVICE) --again

test: $(READY) ## run every notebook and every test
	@export OMP_NUM_THREADS=1 && $(BIN)/nbdev-test --n-workers 2 && $(BIN)/python -m pytest -n 2 --dist loadfile tests

check: $(READY) ## fail when the library, the stored notebooks or the README differ from the notebooks
	@$(BIN)/python docs/check.py

docs: $(READY) ## build the site from the stored notebooks and results: docs/_build/html/index.html
	@$(BIN)/python docs/website.py

export: $(READY) ## library, clean notebooks and README from the notebooks
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(BIN)/python docs/pages.py readme

lock: $(READY) ## pin the newest versions that pyproject.toml allows
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-emit-index-url --no-header -q --upgrade -o requirements.lock

clean: ## remove what can be made again, but no result
	@rm -rf build dist *.egg-info _docs _proc .pytest_cache && find . -name __pycache__ -prune -exec rm -rf {} +
