# make repro: run the pipeline · make test: check the project · make constraints: move to newer versions
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
install = pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: repro test constraints

repro: .venv/for-repro
	dvc repro

test: .venv/for-test
	ruff check
	ruff format --check
	pytest

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/for-repro: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv, which takes some minutes: PyTorch is large"
	$(install) '.[bundled]'
	touch $@

.venv/for-test: .venv/for-repro
	$(install) '.[bundled,test]'
	touch $@

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --editable '.[bundled,test]'
	(echo "# the exact versions that dvc.lock was produced with; make constraints renews them"; \
		build/constraints/bin/pip freeze --exclude-editable) > constraints.txt
	rm -rf build/constraints
