# ARGS="key=value ..." reaches the command behind a target: make train-asr ARGS="train.steps=500 name=short"
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m zipper
READY  := $(VENV)/.ready

.PHONY: help setup prepare train-asr overfit train-codec pretrain test lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything the project needs (about 2 minutes, 5 GB)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

prepare: $(READY)  ## speak the embedded corpus and encode it (train-asr does so by itself)
	$(RUN) prepare configs/asr.yaml $(ARGS)

train-asr: $(READY)  ## zip the shipped towers, train recognition, print the test WER
	$(RUN) train configs/asr.yaml $(ARGS)

overfit: $(READY)  ## learn 32 utterances by heart: a check that everything is wired, 0 % WER on them
	$(RUN) train configs/overfit.yaml $(ARGS)

train-codec: $(READY)  ## train the small EnCodec of assets/codec anew
	$(RUN) train-codec configs/codec.yaml $(ARGS)

pretrain: $(READY)  ## train the text and the speech tower of assets/ anew
	$(RUN) pretrain configs/pretrain-text.yaml $(ARGS)
	$(RUN) pretrain configs/pretrain-speech.yaml $(ARGS)

test: $(READY)  ## run the tests
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(READY)  ## ruff (lint, format) and mypy
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
