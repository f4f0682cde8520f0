# One door. `make` alone lists what is behind it.

PYTHON ?= python3
GUEST := .demo/guest
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup venv guest servers lint check test demo demo-clean bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make this machine ready: packages, libvirt, .venv
	@scripts/setup-system.sh
	@$(MAKE) --no-print-directory venv

venv: $(STAMP) ## make or refresh .venv with the versions in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "cannot make $(VENV): planvirt needs Python 3.11 or newer, '$(PYTHON)' is not; say make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || { echo "venv: making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "venv: installing planvirt and its tools"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' \
	    > $(VENV)/dev-requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VENV)/dev-requirements.txt -e .
	@touch $@
	@echo "venv: $(VENV) is ready"

guest: ## build the tiny guest that tests and demo boot
	@scripts/build-guest.sh $(GUEST)

servers: ## install the image services that tests talk to
	@PYTHON=$(PYTHON) scripts/setup-swift.sh .demo/swift
	@PYTHON=$(PYTHON) scripts/setup-glance.sh .demo/glance
	@scripts/setup-registry.sh .demo/registry

lint: venv ## check style, types and layers only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## everything that needs no hypervisor, in under a minute
	$(BIN)/pytest -m "not real and not sweep" -n auto

test: ## everything, real virtual machines included; a fresh machine is set up first
	@scripts/setup-system.sh test
	@$(MAKE) --no-print-directory venv
	@$(MAKE) --no-print-directory guest
	@$(MAKE) --no-print-directory servers
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest -m "sweep and not real" -n auto
	$(BIN)/pytest -m real

demo: setup ## run the demo plans on real virtual machines
	@scripts/demo.sh

demo-clean: ## remove all that the demo made, and stop what was started for it
	@scripts/demo.sh clean

bench: venv ## measure how fast planvirt is
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean: ## remove caches and build results; .venv and .demo stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "clean: caches and build results are gone"
