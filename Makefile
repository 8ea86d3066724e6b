# What a checkout can do. Every target makes what it needs and nothing else: an environment in
# $(VENV), a wheel built from this tree, and that wheel installed there, so what runs is what
# ships. A stamp in $(VENV) remembers each step; nothing is built again until a source changes.

PYTHON = python3
VENV = .venv
STRESS_SECONDS ?= 60
PYTEST_ARGS =
DEMO_ARGS =

ALLOWLIST = scripts/stubtest-allowlist.txt
BIN = $(VENV)/bin
MEASURE = $(BIN)/pytest bench $(PYTEST_ARGS) --benchmark-columns=median,iqr,min,max,rounds --benchmark-json
PIP = sh scripts/pip.sh $(BIN)/python
SOURCES := setup.py pyproject.toml MANIFEST.in $(sort $(shell \
	find fastpool -name '*.py' -o -name '*.py[xi]' -o -name '*.pxd' -o -name '*.h' -o -name py.typed))

export STRESS_SECONDS
# The checkout must not shadow what is installed.
unexport PYTHONPATH PYTHONHOME
# Targets share one environment, and pip may not change it twice at once: make -j changes nothing.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=$(PYTHON) VENV=$(VENV) STRESS_SECONDS=$(STRESS_SECONDS); FASTPOOL_DEBUG=1 builds with checks"

.PHONY: demo
demo: $(VENV)/.has-demo ## lend 4 connections of a real PostgreSQL to 64 threads, and show it
	@cd $(VENV) && bin/python -m fastpool demo $(DEMO_ARGS)

.PHONY: test
test: $(VENV)/.has-test ## run the tests on the installed package
	@$(BIN)/pytest -m "not stress and not clients" $(PYTEST_ARGS)

.PHONY: test-clients
test-clients: $(VENV)/.has-clients ## run Django, SQLAlchemy and others on psycopg_pool and on fastpool
	@$(BIN)/pytest tests/clients $(PYTEST_ARGS)

.PHONY: stress
stress: $(VENV)/.has-test ## random actions for STRESS_SECONDS
	@$(BIN)/pytest -m stress $(PYTEST_ARGS)

# The interpreter is an ordinary one, so the sanitizers' libraries are loaded before it.
.PHONY: sanitize
sanitize: ## the core's tests under the address and undefined-behaviour sanitizers
	@$(MAKE) VENV=$(VENV)-sanitize FASTPOOL_SANITIZE=address,undefined $(VENV)-sanitize/.has-test
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    $(VENV)-sanitize/bin/pytest tests/core $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.has-lint ## style, types, spelling, and the stubs against the built modules
	@failed=; for check in "ruff check ." "ruff format --check ." "cython-lint fastpool" \
	    codespell mypy \
	    "stubtest --ignore-disjoint-bases --allowlist $(ALLOWLIST) fastpool._core fastpool._fastpath"; \
	do echo "+ $$check"; PATH="$(BIN):$$PATH" $$check || failed=yes; done; test -z "$$failed"

.PHONY: format
format: $(VENV)/.has-lint ## rewrite the Python sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.has-bench ## measure fastpool and psycopg_pool side by side
	@$(MEASURE)=$(VENV)/bench.json
	@$(BIN)/python bench/figures.py show $(VENV)/bench.json

.PHONY: bench-quick
bench-quick: $(VENV)/.has-bench ## the same in under a minute, with less certainty
	@$(MEASURE)=$(VENV)/bench-quick.json --quick
	@$(BIN)/python bench/figures.py show $(VENV)/bench-quick.json

.PHONY: bench-readme
bench-readme: $(VENV)/.has-bench ## measure, and write the figures into README.md
	@mkdir -p bench/results
	@$(MEASURE)=bench/results/readme.json
	@$(BIN)/python bench/figures.py write bench/results/readme.json

.PHONY: build
build: $(VENV)/.wheel ## compile the package

.PHONY: wheel
wheel: $(VENV)/.wheel ## compile the package and put the wheel into dist/
	@mkdir -p dist && cp $(VENV)/wheel/*.whl dist/ && ls dist/*.whl

.PHONY: sdist
sdist: $(VENV)/.has-test ## put the source distribution into dist/
	@$(BIN)/pyproject-build --sdist --no-isolation --outdir dist .

.PHONY: clean
clean: ## remove builds, caches and the environment
	rm -rf build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache $(VENV)

.PHONY: FORCE
FORCE:

$(VENV)/.python: FORCE
	@sh scripts/venv.sh "$(PYTHON)" "$(VENV)"

# A file that goes away has no date to compare, and a kind of build has none either.
$(VENV)/.sources: $(VENV)/.python FORCE
	@printf '%s\n' $(SOURCES) "$(FASTPOOL_DEBUG)/$(FASTPOOL_TRACE)/$(FASTPOOL_SANITIZE)" >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else rm -rf build && mv $@.new $@; fi

$(VENV)/.wheel: $(VENV)/.sources $(SOURCES)
	@echo "building fastpool"
	@rm -rf $(VENV)/wheel
	@$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	@touch $@

$(VENV)/.has-%: $(VENV)/.wheel
	@sh scripts/install.sh $(VENV) $*
	@touch $@
