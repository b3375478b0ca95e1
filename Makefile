# tilewise: `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Several processes, each with whole files of tests; one runs them one after another: make test SIDE_BY_SIDE=
SIDE_BY_SIDE ?= --numprocesses=auto --dist=loadfile --no-loadscope-reorder
READY := $(VENV)/.ready
# Installs what constraints.txt lists, and nothing whose SHA-256 differs.
HASHED := python -m pip install --quiet --no-deps --require-hashes
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow mutants attacks lint format pretrained teacher shipped pretrain-cpu serve docs rehearsal bento pipeline clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Install everything into .venv (about 8 GB, mostly torch)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tilewise needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	@echo "installing into $(VENV): about 8 GB, a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed -n '/^pip==/,/[^\\]$$/p' constraints.txt | $(BIN)/$(HASHED) --requirement /dev/stdin
	@$(BIN)/$(HASHED) --requirement constraints.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Train, export and classify synthetic tiles in demo/: under 3 minutes, no download
	@tilewise demo --overwrite

test: $(READY) ## Run most tests, on all cores: 6 minutes on 2
	@python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(READY) ## Run the rest of the tests: whole trainings, pipelines, releases and clusters: 8 minutes
	@python -m pytest $(SIDE_BY_SIDE) -m slow

mutants: $(READY) ## Put small faults into core code and count those that the tests notice: at most 30 minutes
	@python benchmarks/mutants.py --least 0.9

attacks: $(READY) ## Send hostile uploads to a service, attack it, and look what an honest caller notices: 4 minutes
	@python benchmarks/fuzz.py --model fast --uploads 10000
	@python benchmarks/fuzz.py --model fast --attacks
	@python benchmarks/attacked.py --model fast --minutes 1 --slower 30

lint: $(READY) ## Check style, types and import rules
	@ruff check . && ruff format --check . && mypy && MYPYPATH=. mypy benchmarks/*.py benchmarks/*/*.py && lint-imports

format: $(READY) ## Format the code
	@ruff check --fix . ; ruff format .

RAW ?= data/raw
UNLABELLED ?= data/raw/l2a_unlabelled.npz
SEED ?= 0
PRETRAINED ?= artifacts/pretrained
GUESSER ?= models/pretrained/fast/model.onnx
LISTED := --split lists --lists $(RAW)/splits
GUESSED := $(PRETRAINED)/l2a-guessed
SHIPPED := $(PRETRAINED)/1.4.0
HAVE_UNLABELLED := test -f $(UNLABELLED) || { echo "UNLABELLED=FILE.npz names Level-2A tiles without labels (tilewise train pseudo-label --help)"; exit 1; }
FIT := tilewise train fit
PACK := tilewise data pack $(RAW)/EuroSAT_MS $(RAW)/EuroSAT_RGB $(LISTED)
GUESS := tilewise train pseudo-label $(UNLABELLED)

# A wide network learns from labels, then with tiles of all sizes and fields in small pieces, and the one that ships learns from it
# (docs/decisions/0021 to 0024). Level-2A tiles, which nobody labelled, get the labels that most opinions agree on: GUESSER's for the wide
# network; the student takes all of them and no label of any tile, and in the end those that it helps to label itself.
# LAST is the seed of the last step. Other seeds: make shipped SEED=1 SHIPPED=artifacts/pretrained/seed-1
LAST ?= $(SEED)
pretrained: teacher shipped ## Train the weights of models/pretrained/fast again: 15 minutes of an H200, 15 of a core

teacher: $(READY) # 6 minutes of an H200
	@$(HAVE_UNLABELLED)
	$(PACK) --out $(PRETRAINED)/packed
	$(GUESS) --labelled $(PRETRAINED)/packed --model $(GUESSER) --out $(GUESSED)-first
	$(GUESS) --labelled $(PRETRAINED)/packed --model $(GUESSER) --out $(GUESSED)-all --agreeing 1
	$(PACK) $(GUESSED)-first $(GUESSED)-first-unlabelled --out $(PRETRAINED)/packed-first
	$(PACK) $(GUESSED)-all $(GUESSED)-all-unlabelled --out $(PRETRAINED)/packed-all
	$(FIT) --seed_everything 2 --config configs/experiments/teacher.yaml --data.pack $(PRETRAINED)/packed-first --out $(PRETRAINED)/teacher-first
	$(FIT) --seed_everything 2 --config configs/experiments/sizes.yaml --data.pack $(PRETRAINED)/packed \
	  --model.start_from $(PRETRAINED)/teacher-first/checkpoints/best.ckpt --out $(PRETRAINED)/teacher

# 9 minutes more of an H200, then 15 of one core
shipped: $(READY)
	$(FIT) --seed_everything $(SEED) --config configs/experiments/taught.yaml --data.pack $(PRETRAINED)/packed-all \
	  --model.distillation.teachers '[$(PRETRAINED)/teacher]' --out $(SHIPPED)-taught
	tilewise export --quantisation.enabled false --out $(SHIPPED)-taught
	$(GUESS) --labelled $(PRETRAINED)/packed --model $(SHIPPED)-taught/model.onnx --out $(GUESSED)
	$(PACK) $(GUESSED) $(GUESSED)-unlabelled --out $(PRETRAINED)/packed-l2a
	tilewise train run --seed_everything $(LAST) --config configs/experiments/adapted.yaml --data.pack $(PRETRAINED)/packed-l2a \
	  --model.start_from $(SHIPPED)-taught/checkpoints/best.ckpt --out $(SHIPPED)
	tilewise assess --model $(SHIPPED)/model.onnx --data $(PRETRAINED)/packed-l2a --out $(PRETRAINED)/fp32
	tilewise assess --model $(SHIPPED)/model.int8.onnx --data $(PRETRAINED)/packed-l2a --out $(PRETRAINED)/int8
	tilewise card --model $(SHIPPED)/model.onnx --assessment $(PRETRAINED)/fp32 --assessment $(PRETRAINED)/int8
	@echo "the weights are in $(SHIPPED): copy model.onnx, model.int8.onnx and README.md to models/pretrained/fast"

CPUS := $(PRETRAINED)/on-cpus

# As 1.1.0 was made, but for what it makes of Level-2A. The second cycle draws otherwise than the first: as seed 100, 101, …
pretrain-cpu: $(READY) ## Train such weights without a GPU and without a teacher: 115 minutes of one core
	@$(HAVE_UNLABELLED)
	$(PACK) --out $(CPUS)/packed
	$(FIT) --seed_everything $(SEED) --config configs/experiments/pretrained.yaml --data.pack $(CPUS)/packed --out $(CPUS)/first
	$(FIT) --seed_everything 10$(SEED) --config configs/experiments/pretrained.yaml --data.pack $(CPUS)/packed \
	  --model.start_from $(CPUS)/first/checkpoints/best.ckpt --trainer.max_epochs 90 --out $(CPUS)/second
	tilewise export --quantisation.enabled false --out $(CPUS)/second
	$(GUESS) --labelled $(CPUS)/packed --model $(CPUS)/second/model.onnx --out $(CPUS)/l2a-guessed
	$(PACK) $(CPUS)/l2a-guessed $(CPUS)/l2a-guessed-unlabelled --out $(CPUS)/packed-l2a
	tilewise train run --seed_everything $(SEED) --config configs/experiments/adapted.yaml --data.pack $(CPUS)/packed-l2a \
	  --model.start_from $(CPUS)/second/checkpoints/best.ckpt --out $(CPUS)/third
	@echo "the weights are in $(CPUS)/third; tilewise assess says what they are worth"

serve: $(READY) ## Serve the newest model on http://localhost:3000
	@bentoml serve

docs: $(READY) ## Build docs/ as a site in artifacts/site; broken links fail
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet && echo "the site is artifacts/site/index.html"

rehearsal: $(READY) ## Run a model's whole lifecycle with real processes: at most 15 minutes; needs Debian's prometheus and haproxy
	@deploy/rehearsal

bento: $(READY) ## Build a bento (code and newest model) and print its tag
	@tilewise build

pipeline: $(READY) ## Run the changed stages of the DVC pipeline (dvc.yaml)
	@dvc repro

clean: ## Remove generated files: demo/, artifacts/, caches (not data/, not .venv)
	@rm -rf demo artifacts .pytest_cache .mypy_cache .ruff_cache build *.egg-info
