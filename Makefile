PYTHON ?= python3
BIN := .venv/bin
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-annotate $(OPTIONS)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_CUSTOM_COMPILE_COMMAND := make requirements

.PHONY: help repro pipeline test test-slow runtimes serve bench bench-training bench-serving bench-inference \
	bench-reading ablation reproduce integrity restore release requirements repository

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

repro: pipeline ## install into .venv, run what has changed of the pipeline, print the results
	@$(BIN)/python -m checks.results

pipeline: .venv/for-pipeline build/plots.html
	@# When DVC cannot parse params.yaml, stages.check has the clearer message.
	$(BIN)/dvc repro || { $(BIN)/dvc stage list > /dev/null 2>&1 || $(BIN)/python -m stages.check; exit 1; }

test: .venv/for-test ## lint, check types, run the quick tests (run make repro first: some tests need its models)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/actionlint
	$(BIN)/pytest

test-slow: .venv/for-test ## test the docs' commands, a reproduction, other runtimes, Triton and the container image
	@$(MAKE) --keep-going runtimes || echo "pytest skips the tests of the runtimes that are missing"
	$(BIN)/pytest -m slow

runtimes: build/runtimes/python/installed build/runtimes/npm/installed ## install other runtimes and Triton in build/
runtimes: build/triton/installed

serve: pipeline .venv/for-serve ## build what has changed, and serve the models on http://127.0.0.1:8000 (OPTIONS='--port 8010')
	$(BIN)/python -m serving --lock dvc.lock $(OPTIONS)

bench: bench-training bench-serving ## run both benchmarks, of training and of serving

bench-training: pipeline ## compare the recipes with the course notebook's training loop
	$(BIN)/python -m benchmarks.training $(OPTIONS)

bench-serving: pipeline .venv/for-serve ## compare the server with Triton, KServe, LitServe and MLServer
	$(BIN)/python -m benchmarks.serving $(OPTIONS)

bench-inference: pipeline ## compare int8 with float32 in ONNX Runtime
	$(BIN)/python -m benchmarks.inference $(OPTIONS)

bench-reading: pipeline .venv/for-serve ## measure how many digits and numbers are read in pictures of test digits
	$(BIN)/python -m benchmarks.reading $(OPTIONS)

ablation: pipeline ## measure what each part of the recipes contributes
	$(BIN)/python -m benchmarks.ablation $(OPTIONS)

reproduce: .venv/for-pipeline ## run the committed pipeline in a fresh clone and compare its outputs with dvc.lock
	$(BIN)/python -m checks.reproduce

release: .venv/for-pipeline $(if $(KEY),.venv/for-signing) ## publish the models: verify, sign, push and register them (VERSION=v1.2.0 KEY=../key.pem)
	@$(BIN)/python -m checks.release "$(VERSION)" $(if $(KEY),--key "$(KEY)")

integrity: .venv/for-pipeline ## find outputs and cached files that differ from their digests
	$(BIN)/python -m checks.integrity

restore: .venv/for-pipeline ## discard all uncommitted changes and rebuild the last commit's models
	git restore --source=HEAD --staged --worktree .
	$(BIN)/python -m checks.prune
	$(BIN)/dvc checkout --quiet --force --allow-missing
	@$(MAKE) --no-print-directory repro

requirements: $(BIN)/uv ## lock pyproject.toml's dependencies in requirements/ (newer versions: OPTIONS=--upgrade)
	$(COMPILE) -o requirements/test.txt --extra pipeline --extra bundled --extra serve --extra test pyproject.toml
	$(COMPILE) -o requirements/pipeline.txt -c requirements/test.txt --extra pipeline --extra bundled pyproject.toml
	$(COMPILE) -o requirements/serve.txt -c requirements/test.txt --extra serve pyproject.toml
	$(COMPILE) -o requirements/signing.txt -c requirements/test.txt --extra signing pyproject.toml
	$(COMPILE) -o requirements/s3.txt -c requirements/test.txt --extra s3 pyproject.toml
	printf 'openvino\ntract\n' | $(COMPILE) -o requirements/runtimes.txt -c requirements/test.txt -
	echo uv | $(COMPILE) -o requirements/uv.txt -
	echo skypilot | $(COMPILE) -o requirements/skypilot.txt -
	@# From 36 on, the types of the package kubernetes are pydantic models, which KServe's client cannot read.
	printf 'kserve\nkubernetes<36\n' | $(COMPILE) -o requirements/kserve.txt -

# Without bytecode, each import compiles where PYTHONDONTWRITEBYTECODE is set: PyTorch's takes twice as long.
.venv/for-%: requirements/%.txt | $(BIN)/uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes --requirement $<
	@touch $@

# Triton's own server with its Python backend, and what tests/triton/onnxruntime needs in that backend's Python 3.11,
# whose shared library (Debian: libpython3.11) Triton needs, too.
build/triton/installed: tests/triton/onnxruntime/model.py | $(BIN)/uv
	$(BIN)/uv pip install --target $(@D)/server --no-deps --python-version 3.12 nvidia-pytriton==0.7.0
	$(BIN)/uv pip install --target $(@D)/packages --python-version 3.11 numpy==1.26.4 onnxruntime==1.22.1
	mkdir -p $(@D)/backends
	cp -r $(@D)/server/pytriton/tritonserver/backends/python tests/triton/onnxruntime $(@D)/backends
	install $(@D)/server/pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub $(@D)/backends/python
	chmod +x $(@D)/server/pytriton/tritonserver/bin/tritonserver
	@touch $@

build/runtimes/python/installed: requirements/runtimes.txt | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --target $(@D) --require-hashes --requirement $<
	@touch $@

build/runtimes/npm/installed: requirements/package.json
	mkdir -p $(@D)
	cp $< $(@D)
	npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund
	@touch $@

# Else, the page of `dvc plots show` loads Vega from a content delivery network.
build/plots.html: experiments/plots.py | .venv/for-pipeline
	$(BIN)/python -m experiments.plots

$(BIN)/uv: requirements/uv.txt | repository
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python: expected 3.11 or newer, got {}.{}; \
	use another: make PYTHON=python3.12".format(*sys.version_info))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

repository: # DVC needs git and one commit. Git's own message explains a folder that belongs to another user.
	@error=$$(LC_ALL=C git rev-parse --quiet --verify HEAD 2>&1 > /dev/null) || { case "$$error" in \
		"" | *"not a git repository"*) echo 'expected a git repository with a commit, got none; run' \
			'`git init && git add --all && git commit -m "Start"`' ;; \
		*) echo "$$error" ;; \
	esac; exit 1; } >&2
