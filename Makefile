# Everything happens in .venv; `make demo` and `make test` set up what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# uv does not reuse what it built without isolation, so the wheel is kept here; torch is in its name
MMCV := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dmf_plugins/mmcv-2.1.0-$(shell grep '^torch==' constraints.txt)
SHELL := /bin/bash
JOBS := $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test lint clean
setup: $(VENV)/.all

demo: $(VENV)/.nnunet
	$(BIN)/dmf demo --output demo --overwrite $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# nnU-Net, CPU and CUDA alike
$(VENV)/.nnunet: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV) --editable '.[nnunet]'
	@touch $@

# MMSegmentation. mmcv has no wheel for a current torch; isolated, it builds without its operators
# and says nothing, so it is built against the torch just installed.
$(VENV)/.mmcv: $(VENV)/.nnunet
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build mmcv, e.g. apt install g++"; exit 1; }
	$(UV) 'setuptools<81' wheel ninja psutil
	@test -e $(MMCV)/*.whl || { echo "building mmcv's operators, once for this machine (without debug symbols: half the time)"; \
		mkdir -p $(dir $(MMCV)) && rm -rf $(MMCV).partial && set -o pipefail && CFLAGS=-g0 MMCV_WITH_OPS=1 MAX_JOBS=$(JOBS) $(BIN)/python -m pip wheel -v \
		--no-build-isolation --no-deps --wheel-dir $(MMCV).partial mmcv==2.1.0 2>&1 | tee $(MMCV).log \
		| sed -un 's|^ *\(\[[0-9]*/[0-9]*\]\).*|  mmcv \1|p' && mv $(MMCV).partial $(MMCV) \
		|| { tail -n 20 $(MMCV).log; echo "building mmcv failed; the whole output is in $(MMCV).log. Repeat the same make to go on."; exit 1; }; }
	$(UV) $(MMCV)/*.whl
	@touch $@

$(VENV)/.all: $(VENV)/.mmcv
	$(UV) --editable '.[nnunet,mmseg,evaluate]' --group dev
	@touch $@
