# make repro: run the pipeline · make test: check the project · make serve: serve the models
# make bench: measure training and serving, make bench-inference: int8 beside float32
# make ablation: what each part of the recipes brings
# make reproduce: compare a run from nothing with dvc.lock · make integrity: find damaged files
# make constraints: move to newer versions
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test serve bench bench-training bench-serving bench-inference ablation reproduce integrity constraints

repro: .venv/for-repro
	@$(BIN)/python -m stages.check # DVC, too, reads params.yaml, but its messages are harder to understand
	$(BIN)/dvc repro

test: .venv/for-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest

serve: repro .venv/for-serve
	$(BIN)/python -m serving --lock dvc.lock $(OPTIONS)

bench: bench-training bench-serving

bench-training: repro
	$(BIN)/python -m benchmarks.training $(OPTIONS)

bench-serving: repro .venv/for-serve
	$(BIN)/python -m benchmarks.serving

bench-inference: repro
	$(BIN)/python -m benchmarks.inference

ablation: repro
	$(BIN)/python -m benchmarks.ablation $(OPTIONS)

reproduce: .venv/for-repro
	$(BIN)/python -m checks.reproduce

integrity: .venv/for-repro
	$(BIN)/python -m checks.integrity

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer, please: make PYTHON=…")'
	$(PYTHON) -m venv .venv

.venv/for-repro: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into .venv, which takes some minutes: PyTorch is large"
	@$(INSTALL) '.[pipeline,bundled]'
	@touch $@

.venv/for-serve: .venv/for-repro
	@$(INSTALL) '.[pipeline,serve]'
	@touch $@

.venv/for-test: .venv/for-repro
	@$(INSTALL) '.[pipeline,bundled,serve,test]'
	@touch $@

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --editable '.[pipeline,bundled,serve,test]'
	echo "# The exact versions that dvc.lock was produced with. \`make constraints\` writes this file anew." > constraints.txt
	build/constraints/bin/pip freeze --exclude-editable >> constraints.txt
	rm -rf build/constraints
