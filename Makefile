# make repro: run the pipeline · make test: check the project · make bench: measure it, make ablation: its recipes
# make constraints: move to newer versions
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test bench ablation constraints

repro: .venv/for-repro
	@$(BIN)/python -m stages.check # DVC, too, reads params.yaml, but its messages are harder to understand
	$(BIN)/dvc repro

test: .venv/for-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest

bench: repro
	$(BIN)/python -m benchmarks.training $(OPTIONS)

ablation: repro
	$(BIN)/python -m benchmarks.ablation $(OPTIONS)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer, please: make PYTHON=…")'
	$(PYTHON) -m venv .venv

.venv/for-repro: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into .venv, which takes some minutes: PyTorch is large"
	@$(INSTALL) '.[bundled]'
	@touch $@

.venv/for-test: .venv/for-repro
	@$(INSTALL) '.[bundled,test]'
	@touch $@

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --editable '.[bundled,test]'
	echo "# The exact versions that dvc.lock was produced with. \`make constraints\` writes this file anew." > constraints.txt
	build/constraints/bin/pip freeze --exclude-editable >> constraints.txt
	rm -rf build/constraints
