# Everything a developer types. Python 3.11 or newer, make and a package index are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
# The Node.js that the virtual environment brings.
NPM := PATH="$$PWD/$(BIN):$$PATH" npm --prefix

# Compiled files are kept, whatever the environment says: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run better-auth test test-fast test-clients soak bench bench-growth bench-load bench-engines check check-code check-examples check-lock check-schema format openapi lock audit clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: $(VENV)/run ## serve on 127.0.0.1:$PORT (default 8000) with an embedded PostgreSQL, for development
	@exec $(BIN)/todo-api dev

better-auth: $(VENV)/ready examples/node_modules/ready ## serve behind a real Better Auth server, for trying
	@exec $(BIN)/python -m tests.deployment.better_auth

test: $(VENV)/ready examples/node_modules/ready .servers/ready ## run the whole test suite, on real PostgreSQL
	$(BIN)/pytest --numprocesses 3 --dist worksteal --cov --cov-report=term -rs

test-fast: $(VENV)/ready ## run all tests but those of migrations, poolers, Node.js, browsers and processes: half a minute
	$(BIN)/pytest --numprocesses 3 --dist worksteal -m 'not slow' tests/api tests/database/test_*.py tests/test_*.py

test-clients: $(VENV)/bench tests/clients/node_modules/ready ## generate clients from openapi.json, compile them and run them against the service
	$(BIN)/pytest -rs tests/clients/matrix.py tests/clients/docs_page.py

soak: $(VENV)/ready ## break the database under load for two minutes (SOAK_SECONDS=…), and count what was lost
	$(BIN)/python -m tests.support.soak $(SOAK_SECONDS)

bench: $(VENV)/bench ## compare with SQL by hand and with the usual ORM service: three minutes, into docs/performance.md
	$(BIN)/python -m benchmarks

bench-growth: $(VENV)/bench ## a distant database, a growing table, long lists, more clients: ten minutes
	$(BIN)/python -m benchmarks.growth

bench-load: $(VENV)/bench ## more requests than can be answered, and a flood beside another user: half an hour
	$(BIN)/python -m benchmarks.overload

bench-engines: $(VENV)/bench ## compare what statements cost on PostgreSQL, partitions and the Citus cluster of CITUS_URL
	$(BIN)/python -m benchmarks.engines

check: $(VENV)/ready examples/node_modules/ready ## check format, lint, types, locked requirements, and that models and migrations agree
	@$(MAKE) --no-print-directory --jobs 2 --keep-going check-code check-examples check-lock check-schema

check-code:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check-examples:
	$(NPM) examples run --silent check

check-lock:
	rm -rf $(VENV)/lock && mkdir $(VENV)/lock && cp -R pyproject.toml requirements $(VENV)/lock
	cd $(VENV)/lock && PATH="$$OLDPWD/$(BIN):$$PATH" requirements/lock
	diff -r requirements $(VENV)/lock/requirements

check-schema:
	$(BIN)/python -m tests.support.on_embedded_postgres '$(BIN)/alembic upgrade head && $(BIN)/alembic check'

format: $(VENV)/ready ## format the code and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(VENV)/ready ## write openapi.json anew
	$(BIN)/python -m tests.support.openapi

lock: $(VENV)/ready ## write the locked requirements anew
	PATH="$$PWD/$(BIN):$$PATH" requirements/lock --upgrade
	for folder in examples tests/clients; do $(NPM) $$folder update --package-lock-only || exit 1; done

# Strict, or packages that the service of advisories does not know would count as clean.
audit: $(VENV)/ready ## look up known vulnerabilities of everything that is locked
	$(BIN)/uv tool run pip-audit --strict --require-hashes --disable-pip -r requirements/all.txt
	for folder in examples tests/clients; do $(NPM) $$folder audit || exit 1; done

clean: ## remove what can be made again; the data in .data stays
	rm -rf $(VENV) .servers examples/node_modules tests/clients/node_modules examples/typescript-client/todo-api.d.ts .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov

# uv comes by whatever pip there is, and installs the rest.
$(VENV)/run: requirements/uv.txt requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: name one by PYTHON=…")'
	@if $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV) && set -- $(PYTHON) -m pip --python $(BIN)/python; \
	else \
		$(PYTHON) -m venv $(VENV) && set -- $(BIN)/python -m pip; \
	fi && "$$@" install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(INSTALL) --require-hashes -r requirements/run.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/ready: $(VENV)/run requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/bench: $(VENV)/ready requirements/all.txt
	$(INSTALL) --require-hashes -r requirements/all.txt
	@touch $@

.servers/ready: tests/support/archive.py | $(VENV)/ready
	$(BIN)/python -m tests.support.archive

%/node_modules/ready: $(VENV)/ready %/package-lock.json
	$(NPM) $* ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@
