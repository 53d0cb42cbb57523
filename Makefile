# trisite: `make demo` shows the whole story on one machine, `make test` checks it.
# Both set the machine up first. See `make setup`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Debian's own, for which the packages below are and which is built with optimisation, if it is there; else the first on the path.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
APT_PACKAGES := fuse3 libfuse3-dev pkg-config gcc libc6-dev iproute2 python3 python3-dev python3-venv

.PHONY: help setup system demo test lint soak bench clean

help:
	@echo "make demo   three sites, a real mount, a dead site, a takeover, the way back"
	@echo "make test   lint and all tests but the soak"
	@echo "make lint   ruff, mypy, import contracts"
	@echo "make soak   the random, long tests; prints the seed (SEED=n repeats a run)"
	@echo "make bench  measurements against a plain pass-through mount"
	@echo "make setup  system packages and $(VENV); the others do it themselves"
	@echo "make clean  remove what was built"

setup: $(STAMP)

# Debian packages, only those that are missing. Elsewhere the operator provides them.
system:
	@if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then \
	    missing=(); \
	    for package in $(APT_PACKAGES); do \
	        status=$$(dpkg-query -W -f='$${db:Status-Abbrev}' "$$package" 2>/dev/null || true); \
	        case "$$status" in ?i*) ;; *) missing+=("$$package") ;; esac; \
	    done; \
	    if (( $${#missing[@]} )); then \
	        if (( $$(id -u) != 0 )); then \
	            echo "make: these Debian packages are missing: $${missing[*]}; install them as root" \
	                 "(apt-get install $${missing[*]}) and run make again" >&2; \
	            exit 1; \
	        fi; \
	        echo "installing $${missing[*]}"; \
	        export DEBIAN_FRONTEND=noninteractive; \
	        apt-get update -q; \
	        apt-get install -y -q --no-install-recommends "$${missing[@]}"; \
	    fi; \
	elif ! pkg-config --exists fuse3; then \
	    echo "make: libfuse 3 with its headers, pkg-config and a C compiler are needed; please install them" >&2; \
	    exit 1; \
	fi

# The package list is looked at every time (order-only), the environment is built once.
$(STAMP): pyproject.toml constraints.txt | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "make: $(PYTHON) is older than 3.11; name a newer one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	    || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/trisite demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The simulation, which only computes, runs beside the other tests, which mostly wait.
test: lint
	@mkdir -p build
	@nice -n 10 $(BIN)/python -m pytest -m 'not soak' tests/sim > build/test-sim.log 2>&1 & simulation=$$!; \
	    trap 'kill $$simulation 2>/dev/null || true' EXIT; \
	    status=0; $(BIN)/python -m pytest -m 'not soak' --ignore=tests/sim || status=$$?; \
	    wait $$simulation || status=$$?; trap - EXIT; \
	    cat build/test-sim.log; exit $$status

soak: setup
	@seed="$${SEED:-$$RANDOM$$RANDOM}"; echo "soak: seed $$seed (repeat with: make soak SEED=$$seed)"; \
	TRISITE_SEED="$$seed" $(BIN)/python -m pytest -m soak

bench: setup
	$(BIN)/python -m tools.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
