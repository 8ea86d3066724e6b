# What a checkout can do. Every target makes what it needs and nothing else: an environment in
# $(VENV), a wheel built from this tree, and that wheel installed there, so what runs is what
# ships. A stamp in $(VENV) remembers each step; nothing is built again until a source changes.

PYTHON = python3
PYTHONS = 3.10 3.11 3.12 3.13 3.13t 3.14 3.14t 3.15
VENV = .venv
STRESS_SECONDS ?= 60
# Tests wait more than they work.
TEST_JOBS ?= 2
PYTEST_ARGS =
# AddressSanitizer's own locks do not survive a fork among threads that allocate.
SANITIZED = tests/core tests/pool tests/pool_async -m "not stress and not clients" -k "not forked_while_threads"
DEMO_ARGS =
MUTANTS =
BASE = origin/main
PAIRS = 3
RESULTS = $(VENV)/bench.json
# In bench/results: readme, or free-threaded with such a PYTHON.
FIGURES = readme
PAGE = $(VENV)/report.html
SITE = $(VENV)/docs
REPOSITORY ?= origin

# make test PSYCOPG=3.2.0 POSTGRES=14: that driver, and servers of that version. Give them a VENV
# of their own.
PSYCOPG ?=
POSTGRES ?=
ROWS =
# A tag of psycopg's repository.
UPSTREAM ?= 3.3.9

ALLOWLIST = scripts/stubtest-allowlist.txt
COMPILED = $(patsubst fastpool/%.pyx,fastpool.%,$(wildcard fastpool/*.pyx))
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
MEASURE = $(BIN)/pytest bench -q $(PYTEST_ARGS) --benchmark-quiet --benchmark-json
REPORT = $(BIN)/python -m bench.report
PIP = sh scripts/pip.sh $(BIN)/python
SOURCES := setup.py pyproject.toml MANIFEST.in $(sort $(shell \
	find fastpool -name '*.py' -o -name '*.py[xi]' -o -name '*.pxd' -o -name '*.h' -o -name py.typed))

export STRESS_SECONDS PSYCOPG
ifneq ($(POSTGRES),)
export FASTPOOL_PG_BIN = $(abspath $(VENV))/postgres-$(POSTGRES)/node_modules/postgres/native/bin
endif
# The checkout must not shadow what is installed.
unexport PYTHONPATH PYTHONHOME
# Targets share one environment, and pip may not change it twice at once: make -j changes nothing.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=$(PYTHON) VENV=$(VENV) STRESS_SECONDS=$(STRESS_SECONDS); FASTPOOL_DEBUG=1 builds with checks"

.PHONY: demo
demo: $(VENV)/.has-demo ## lend 4 connections of a real PostgreSQL to 64 threads, and show it
	@cd $(VENV) && bin/python -m fastpool demo $(DEMO_ARGS)

.PHONY: test
test: $(VENV)/.has-test $(if $(POSTGRES),$(VENV)/.postgres-$(POSTGRES)) ## run the tests on the installed package
	@$(BIN)/pytest -m "not stress and not clients and not faults" -n $(TEST_JOBS) --dist worksteal -p no:benchmark $(PYTEST_ARGS)

.PHONY: test-versions
test-versions: ## run the suite with old and new psycopgs and PostgreSQLs, and say so in README.md
	@$(PYTHON) scripts/versions.py run "$(MAKE)" "$(VENV)" $(ROWS)

.PHONY: test-upstream
test-upstream: $(VENV)/.has-test ## in CI only: psycopg's own pool tests of UPSTREAM on fastpool
	@sh scripts/upstream.sh "$(VENV)" "$(UPSTREAM)" "$$DATABASE_URL"

.PHONY: test-clients
test-clients: $(VENV)/.has-clients ## run Django, SQLAlchemy, tracers, gevent, uvloop and others on both pools
	@$(BIN)/pytest tests/docs -m clients -p no:benchmark $(PYTEST_ARGS)
	@$(BIN)/pytest tests/clients tests/pool/test_gevent.py tests/pool/test_instrumentation.py $(PYTEST_ARGS)
	@$(BIN)/pytest tests/contract_async tests/pool_async -k uvloop -n $(TEST_JOBS) $(PYTEST_ARGS)

.PHONY: test-faults
test-faults: $(VENV)/.has-test ## freeze, kill, restart, refuse and overload real servers, in under 6 minutes
	@$(BIN)/pytest tests/faults -n $(TEST_JOBS) --dist worksteal -p no:benchmark $(PYTEST_ARGS)

.PHONY: stress
stress: $(VENV)/.has-test ## random actions for STRESS_SECONDS
# An interrupt may strike the very end of a thread; what matters is in the ledgers.
	@$(BIN)/pytest -m stress -p no:threadexception $(PYTEST_ARGS)

# The interpreter is an ordinary one, so the sanitizers' libraries are loaded before it; and the
# tests' scripts take the installed package, for the checkout gets no modules of this kind.
.PHONY: asan
asan: ## the core's and the pools' tests under the address and undefined-behaviour sanitizers
	@$(MAKE) VENV=$(VENV)-asan FASTPOOL_SANITIZE=address,undefined $(VENV)-asan/.has-test
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    PYTHONSAFEPATH=1 PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 FASTPOOL_EXAMPLES=40 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    $(VENV)-asan/bin/pytest $(SANITIZED) --timeout 300 -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(VENV)/.has-test ## break the protocol in many ways, one at a time: the tests notice each
	@$(BIN)/python scripts/mutants.py $(MUTANTS)

.PHONY: lint
lint: $(VENV)/.has-lint ## style, types, spelling, and the stubs against the built modules
	@failed=; for check in "ruff check ." "ruff format --check ." "cython-lint fastpool" \
	    codespell mypy "sh scripts/lint-workflows.sh" "pytest -q tests/typing/test_checkers.py" \
	    "stubtest --ignore-disjoint-bases --allowlist $(ALLOWLIST) $(COMPILED)"; \
	do echo "+ $$check"; PATH="$(BIN):$$PATH" $$check || failed=yes; done; test -z "$$failed"

.PHONY: docs
docs: $(VENV)/.has-docs ## make a site of docs/ in VENV/docs; every warning is an error
	@$(BIN)/python scripts/reference.py --check
	@$(BIN)/sphinx-build -q -W --keep-going --fresh-env docs $(VENV)/docs
	@echo "$(VENV)/docs/index.html"

.PHONY: docs-publish
docs-publish: ## put SITE, what make docs has made, into docs/ on the branch gh-pages of REPOSITORY
	@sh scripts/publish-docs.sh "$(SITE)" "$(REPOSITORY)" gh-pages

.PHONY: reference
reference: $(VENV)/.has-docs ## write docs/reference.md from the docstrings
	@$(BIN)/python scripts/reference.py

.PHONY: format
format: $(VENV)/.has-lint ## rewrite the Python sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What was typed goes into the results.
bench bench-quick bench-readme: export BENCH_COMMAND = make $@ $(MAKEOVERRIDES)

.PHONY: bench
bench: $(VENV)/.has-peers ## measure fastpool and its peers side by side, in under 10 minutes
	@$(MEASURE)=$(VENV)/bench.json
	@$(REPORT) $(VENV)/bench.json --markdown -o $(VENV)/bench.html && echo "$(VENV)/bench.html"

.PHONY: bench-quick
bench-quick: $(VENV)/.has-peers ## the same in under a minute, with less certainty
	@$(MEASURE)=$(VENV)/bench-quick.json --quick
	@$(REPORT) $(VENV)/bench-quick.json --markdown -o $(VENV)/bench-quick.html && echo "$(VENV)/bench-quick.html"

.PHONY: bench-readme
bench-readme: $(VENV)/.has-peers ## measure, and write the figures into README.md and docs/performance.md
	@mkdir -p bench/results
	@$(MEASURE)=bench/results/$(FIGURES).json
	@$(REPORT) bench/results/readme.json --readme README.md
	@$(REPORT) bench/results/readme.json $$(ls bench/results/*.json | grep -v /readme.json) --aims docs/performance.md

.PHONY: bench-compare
bench-compare: ## measure the commit BASE and this tree PAIRS times in turns, and compare them
	@sh scripts/compare.sh "$(MAKE)" "$(PYTHON)" "$(VENV)" "$(BASE)" "$(PAIRS)"

# What reads results needs nothing but a Python.
.PHONY: bench-summary
bench-summary: ## print the table of RESULTS, into a job's summary where there is one
	@$(PYTHON) -m bench.report $(RESULTS) --markdown >>"$${GITHUB_STEP_SUMMARY:-/dev/stdout}"

.PHONY: bench-publish
bench-publish: ## add RESULTS to the history on the branch gh-pages of REPOSITORY
	@sh scripts/publish.sh "$(PYTHON)" "$(RESULTS)" "$(REPOSITORY)" gh-pages

.PHONY: report
report: ## write the page about RESULTS, one or more, to PAGE
	@$(PYTHON) -m bench.report $(RESULTS) -o $(PAGE) && echo "$(PAGE)"

.PHONY: build
build: $(VENV)/.wheel ## compile the package

.PHONY: wheel
wheel: $(VENV)/.wheel ## compile the package and put the wheel into dist/
	@mkdir -p dist && cp $(VENV)/wheel/*.whl dist/ && ls dist/*.whl

.PHONY: sdist
sdist: $(VENV)/.has-tools ## put the source distribution into dist/
	@$(BIN)/python -m build --sdist --outdir dist .

.PHONY: wheel-check
wheel-check: $(VENV)/.has-tools ## what a stranger does: sdist, wheel, bare environment, self-test, demo
	@sh scripts/wheel-check.sh "$(VENV)"

# Whatever interpreters there are, each with an environment of its own.
.PHONY: wheel-check-all
wheel-check-all: ## the same with each Python of PYTHONS that is here
	@sh scripts/each-python.sh "$(MAKE)" "$(VENV)" wheel-check $(PYTHONS)

.PHONY: wheels
wheels: $(VENV)/.has-tools ## build and try wheels for every Python of this platform, into dist/
	@$(BIN)/python -m cibuildwheel --output-dir dist $(if $(SDIST),$(wildcard $(SDIST)))

.PHONY: cross
cross: $(VENV)/.python ## compile the core for Windows, macOS and other processors
	@$(PIP) install 'Cython>=3.3,<3.4' 'ziglang==0.17.*'
	@$(BIN)/python scripts/cross.py "$(VENV)/cross"

.PHONY: tag-check
tag-check: ## see that TAG is the version that pyproject.toml and the changelog tell
	@grep -qx 'version = "$(TAG:v%=%)"' pyproject.toml && grep -q '^## \[$(TAG:v%=%)\]' CHANGELOG.md \
	    || { echo "$(TAG) is not the version of pyproject.toml and CHANGELOG.md" >&2; exit 1; }

.PHONY: clean
clean: ## remove builds, caches and the environment
	rm -rf build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache $(VENV)

.PHONY: FORCE
FORCE:

$(VENV)/.python: FORCE
	@sh scripts/venv.sh "$(PYTHON)" "$(VENV)"

# A file that goes away has no date to compare, and a kind of build has none either.
$(VENV)/.sources: $(VENV)/.python FORCE
	@printf '%s\n' $(SOURCES) "$(FASTPOOL_DEBUG)/$(FASTPOOL_TRACE)/$(FASTPOOL_SANITIZE)/$(PSYCOPG)" >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else rm -rf build && mv $@.new $@; fi

$(VENV)/.wheel: $(VENV)/.sources $(SOURCES)
	@echo "building fastpool"
	@rm -rf $(VENV)/wheel
	@$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	@touch $@

$(VENV)/.postgres-%: $(VENV)/.python
	@sh scripts/postgres.sh $* $(VENV)/postgres-$*
	@touch $@

# They are compiled. A Python that they have no wheel for is measured without them.
$(VENV)/.has-peers: $(VENV)/.has-bench
	@for peer in 'asyncpg>=0.30' 'psycopg2-binary>=2.9'; do \
	    $(PIP) install --only-binary=:all: "$$peer" 2>/dev/null || echo "no $$peer for this Python"; done
	@touch $@

# They build and judge what is shipped, so nothing has to be built for them.
$(VENV)/.has-tools: $(VENV)/.python scripts/wheel-tools.txt
	@$(PIP) install -r scripts/wheel-tools.txt
	@$(PIP) install --only-binary=:all: 'twine>=6.1' 2>/dev/null || echo "no twine for this Python"
	@touch $@

$(VENV)/.has-%: $(VENV)/.wheel
	@sh scripts/install.sh $(VENV) $*
	@touch $@
