# Everything sets itself up: `make demo` and `make test` work in a fresh clone on a machine with Python and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
TRAIN ?= build/train
WORKERS ?= 2

.PHONY: demo test test-ndif lint types recipes check-sae-format check-full-size check-gpu bridges bench bench-more bench-pictures early-alignment deep-alignment apart sae-features train-demo train-gemma docs docs-links docs-pictures tutorials dist clean

$(VENV)/.ready: pyproject.toml
	@echo "setting up $(VENV) once: torch, transformers, nnsight and what the tests need; some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/.ready  ## a picture of a concept, drawn by the bundled model and named by the bundled judge
	$(BIN)/nnsight-dream synthesize fox --layer 1 --judge --out dreams

test: $(VENV)/.ready  ## the default tests: offline, no GPU, under 12 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered

lint: $(VENV)/.ready  ## style, layers of imports, and the longest files and functions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tests/sizes.py

types: $(VENV)/.ready
	$(BIN)/mypy

recipes: $(VENV)/.ready  ## every recipe, and every block and notebook of README and docs, on the bundled model
	$(BIN)/python tests/run_recipes.py
	$(BIN)/python -m pytest -m slow tests/test_notebooks.py

check-sae-format: $(VENV)/.ready  ## Gemma Scope 2's format with files as large as the real ones (a minute)
	$(BIN)/python -m pytest -s -m full_size tests/test_gemma_scope.py

check-full-size: $(VENV)/.ready  ## a step of Gemma 3 4B and InternVL 3 8B, cut at layer 1, against its estimate (12 GB)
	$(BIN)/python benchmarks/full_size.py

check-gpu: $(VENV)/.ready  ## what only a GPU can show: parity, determinism, types, memory, speed (skips where there is none)
	$(BIN)/python benchmarks/gpu.py

test-ndif: $(VENV)/.ready  ## NDIF's own server brought up here (CPU, loopback), jobs run on it, taken down (root, redis-server)
	CLIENT_PYTHON=$(abspath $(BIN))/python bash tests/ndif/run.sh

bridges: $(VENV)/.ready  ## what a TransformerBridge computes against the model in it, for every architecture: a table (half a minute)
	$(BIN)/python tests/bridges.py

bench: $(VENV)/.ready  ## speed of a step against hand-cut torch and against a full forward with a hook (a minute)
	$(BIN)/python benchmarks/step.py

bench-more: $(VENV)/.ready  ## a row per family, cost against size and number, sizes (half an hour)
	$(BIN)/python benchmarks/step.py --families
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/resolution.py

bench-pictures: $(VENV)/.ready  ## how often the judge names a prototype: by layer, setting, canvas and candidate (an hour and a half)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps horama==0.3.0
	for table in layers sources settings canvases; do $(BIN)/python benchmarks/recognition.py $$table || exit 1; done
	$(BIN)/python benchmarks/candidates.py --out build/candidates

early-alignment: $(VENV)/.ready  ## the paper's experiment on the bundled model, whole; goes on where it stopped
	$(BIN)/python recipes/early_alignment.py --more 1 --folder build/early-alignment

deep-alignment: $(VENV)/.ready  ## where and by what words and pictures align in the bundled model, with figures (8 minutes of processor)
	$(BIN)/python recipes/deep_alignment.py --folder build/deep-alignment

apart: $(VENV)/.ready  ## two small models that never met, trained and compared (fetches art; 7 minutes of processor)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[train]"
	$(BIN)/python recipes/train_demo.py --only fetch render --work $(TRAIN)
	$(BIN)/python recipes/apart.py --art $(TRAIN)/art.npz --folder build/apart/compared

sae-features: $(VENV)/.ready  ## cards of 50 word-and-picture features of the bundled SAE, judged; goes on where it stopped
	$(BIN)/python recipes/sae_features.py --folder build/sae-features

train-gemma: $(VENV)/.ready  ## hours: projector and adapter of gemma-270m (fetches art and the language model, 0.3 GB; resumable)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[gemma,train]"
	$(BIN)/python recipes/train_demo.py --only fetch render --work $(TRAIN)
	$(BIN)/python recipes/train_gemma.py --art $(TRAIN) --work build/gemma --image-tokens 16
	$(BIN)/python recipes/alignment_over_training.py --checkpoints build/gemma/checkpoints --folder build/over-training

train-demo: $(VENV)/.ready  ## hours: fetch the art and train tower, language model and judge anew (resumable)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[train]"
	$(BIN)/python recipes/train_demo.py --work $(TRAIN)

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## the site in build/docs, warnings as errors, every link within it checked
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d build/doctrees docs build/docs
	$(BIN)/python docs/_ext/check_site.py build/docs
	@echo "open build/docs/index.html"

docs-links: $(VENV)/.docs  ## links that lead out of the site (needs the network)
	$(BIN)/sphinx-build --quiet -b linkcheck -d build/doctrees docs build/links

docs-pictures: $(VENV)/.docs  ## the pictures of README and concepts, drawn anew (2 minutes of processor)
	$(BIN)/python docs/pictures/make.py

tutorials: $(VENV)/.docs  ## the notebooks, run anew, with their outputs kept (9 minutes of a shared core)
	$(BIN)/python docs/tutorials/run.py

dist: $(VENV)/.ready  ## sdist and wheel in dist/; the wheel is installed into a fresh environment and draws a fox there
	$(BIN)/pip install --quiet --disable-pip-version-check build
	TORCH="$(TORCH)" $(BIN)/python tests/run_dist.py

clean:
	rm -rf $(VENV) build dist dreams .pytest_cache .mypy_cache .ruff_cache .coverage
