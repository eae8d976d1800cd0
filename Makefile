# Everything happens in .venv; `make demo` and `make test` set up what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# uv does not reuse what it built without isolation, so the wheel is kept here, by Python and torch
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dmf_plugins
MMCV = $(CACHE)/mmcv-2.1.0-$(shell $(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')-$(shell grep '^torch==' constraints.txt)
JOBS := $(shell nproc 2>/dev/null || echo 2)
again = || { echo "make: this step failed. What is done is kept: repeat the same make to go on."; exit 1; }

ifneq ($(filter setup test test-fast lint,$(or $(MAKECMDGOALS),setup)),)
ifeq ($(wildcard $(VENV)/.all),)
$(info Setting up $(VENV), once; 8 GB of disk and a C++ compiler are needed:)
$(info 1. Python environment; 2. torch and nnU-Net: a few minutes, by your network;)
$(info 3. MMSegmentation: mmcv is compiled, once for this machine, 2 to 5 minutes on 2 cores;)
$(info 4. what tests and documentation need: 1 minute. `make demo` needs only 1 and 2.)
endif
endif

.PHONY: setup demo test test-fast lint docs clean
setup: $(VENV)/.all
	@echo "ready: $(BIN)/dmf doctor checks it, make demo and make test try it"

demo: $(VENV)/.nnunet
	$(BIN)/dmf demo --output demo --overwrite $(if $(DATA),--data "$(DATA)")

# where the variable is set, each of the many processes would compile this package anew
test test-fast: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) demo site

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	@echo "==> $(VENV)"
	@$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv $(again)

# nnU-Net, CPU and CUDA alike
$(VENV)/.nnunet: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "==> torch and nnU-Net"
	@$(UV) --editable '.[nnunet]' $(again)
	@touch $@

# MMSegmentation. mmcv has no wheel for a current torch; isolated, it builds without its operators
# and says nothing, so it is built against the torch just installed. Most of the time is torch's
# headers and debug symbols: 57 of mmcv's 77 files only pass calls on, and are compiled as one.
define build_mmcv
rm -rf $(MMCV).partial && mkdir -p $(MMCV).partial && cd $(MMCV).partial && \
$(CURDIR)/$(BIN)/python -m pip download --quiet --no-build-isolation --no-deps --no-binary mmcv mmcv==2.1.0 && \
tar -xf mmcv-2.1.0.tar.gz && cd mmcv-2.1.0/mmcv/ops/csrc/pytorch && mkdir calls && mv *.cpp calls && \
printf '#include "%s"\n' calls/*.cpp > calls.cpp && cd $(MMCV).partial && \
CFLAGS='-g0 -O3 -DNDEBUG' MMCV_WITH_OPS=1 MAX_JOBS=$(JOBS) $(CURDIR)/$(BIN)/python -m pip wheel -v \
	--no-build-isolation --no-deps --wheel-dir . ./mmcv-2.1.0
endef

$(VENV)/.mmcv: $(VENV)/.nnunet
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build mmcv, e.g. apt install g++"; exit 1; }
	@echo "==> mmcv"
	@$(UV) 'setuptools<81' wheel ninja psutil $(again)
	@test -e $(MMCV)/*.whl || { echo "compiling; the whole output: $(MMCV).log"; mkdir -p $(CACHE); \
		{ $(build_mmcv); } 2>&1 | tee $(MMCV).log | sed -un 's|^ *\(\[[0-9]*/[0-9]*\]\).*|  mmcv \1|p'; \
		test -e $(MMCV).partial/*.whl && rm -rf $(MMCV).partial/mmcv-2.1.0 $(MMCV).partial/*.tar.gz && mv $(MMCV).partial $(MMCV) \
			|| { tail -n 20 $(MMCV).log; false; }; } $(again)
	@$(UV) $(MMCV)/*.whl $(again)
	@touch $@

$(VENV)/.all: $(VENV)/.mmcv
	@echo "==> MMSegmentation, tests, documentation"
	@$(UV) --editable '.[nnunet,mmseg,evaluate,cluster]' --group dev $(again)
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "==> documentation"
	@$(UV) --group docs $(again)
	@touch $@
