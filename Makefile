# Every target sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Versions to install; .ci/ has the oldest and the newest.
CONSTRAINTS ?= constraints.txt
FASHION_MNIST := .cache/fashion-mnist

.PHONY: demo test test-slow gpu transformers-tests lint docs fashion-mnist clean

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --no-compile --constraint $(CONSTRAINTS) --editable ".[test,docs]"
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/liere-hf demo --output_dir runs/demo

# One thread a process. Python keeps what it compiles, whatever the environment says: many processes import the same.
# pyproject.toml says what the markers are for.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2

# Files marked as one xdist_group share what they set up, and run in one process.
test: .venv/installed transformers-tests
	$(PYTEST) --dist loadgroup -m "not extensive and not end_to_end and not gpu"

test-slow: .venv/installed transformers-tests
	$(PYTEST) --dist loadfile -m "(extensive or end_to_end) and not gpu"

# What needs a CUDA device, each with its time, and the benchmark's table. Fails where there is none.
gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu --durations 0 --durations-min 0
	$(BIN)/liere-hf benchmark --preset base-imagenet --device cuda --output_dir results/benchmark_base_imagenet_gpu

# The common tests of the transformers that is installed; ours inherit from them.
transformers-tests: .venv/installed
	$(BIN)/python tests/modeling/transformers_source.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documentation site, in site/. The variable silences the notice that mkdocs-material has a successor.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The real Fashion-MNIST without a hub, on Debian and its kin.
fashion-mnist:
	mkdir -p $(FASHION_MNIST)
	cd $(FASHION_MNIST) && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist*.deb . && \
	mv usr/share/datasets/fashion-mnist/* . && rm -r usr *.deb

clean:
	rm -rf .venv .cache build dist runs site *.egg-info
