# Everything a developer types. Python 3.11 or newer, make and a package index are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --no-strip-extras --generate-hashes --python-version 3.11 \
	--custom-compile-command 'make lock' pyproject.toml
# The Node.js that the virtual environment brings.
NPM := PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix examples

# Compiled files are kept, whatever the environment says: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run better-auth test soak bench bench-growth check format openapi lock audit clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: $(VENV)/ready ## serve on 127.0.0.1:$PORT (default 8000) with an embedded PostgreSQL, for development
	@exec $(BIN)/todo-api dev

better-auth: $(VENV)/ready examples/node_modules/ready ## serve behind a real Better Auth server, for trying
	@exec $(BIN)/python -m tests.deployment.better_auth

test: $(VENV)/ready examples/node_modules/ready ## run the whole test suite, on real PostgreSQL
	$(BIN)/pytest --numprocesses 3 --dist worksteal --cov --cov-report=term -rs

soak: $(VENV)/ready ## break the database under load for two minutes (SOAK_SECONDS=…), and count what was lost
	$(BIN)/python -m tests.support.soak $(SOAK_SECONDS)

bench: $(VENV)/bench ## compare with SQL by hand and with the usual ORM service: three minutes, into docs/performance.md
	$(BIN)/python -m benchmarks

bench-growth: $(VENV)/bench ## a distant database, a growing table, long lists, more clients: ten minutes
	$(BIN)/python -m benchmarks.growth

check: $(VENV)/ready examples/node_modules/ready ## check format, lint, types, locked requirements, and that models and migrations agree
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(NPM) run --silent check
	cp requirements*.txt $(VENV)/ && $(COMPILE) -o $(VENV)/requirements.txt \
		&& $(COMPILE) --extra opentelemetry -o $(VENV)/requirements-opentelemetry.txt \
		&& $(COMPILE) --group dev -o $(VENV)/requirements-dev.txt \
		&& $(COMPILE) --group dev --group bench -o $(VENV)/requirements-bench.txt
	for file in requirements*.txt; do diff $$file $(VENV)/$$file || exit 1; done
	$(BIN)/python -m tests.support.on_embedded_postgres '$(BIN)/alembic upgrade head && $(BIN)/alembic check'

format: $(VENV)/ready ## format the code and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(VENV)/ready ## write openapi.json anew
	$(BIN)/python -m tests.support.openapi

lock: $(VENV)/ready ## write the locked requirements anew
	$(COMPILE) --upgrade -o requirements.txt
	$(COMPILE) --upgrade --extra opentelemetry -o requirements-opentelemetry.txt
	$(COMPILE) --upgrade --group dev -o requirements-dev.txt
	$(COMPILE) --group dev --group bench -o requirements-bench.txt
	$(NPM) update --package-lock-only

# Strict, or packages that the service of advisories does not know would count as clean.
audit: $(VENV)/ready ## look up known vulnerabilities of everything that is locked
	for file in requirements*.txt; do \
		$(BIN)/uv tool run pip-audit --strict --require-hashes --disable-pip -r $$file || exit 1; done
	$(NPM) audit

clean: ## remove what can be made again; the data in .data stays
	rm -rf $(VENV) examples/node_modules examples/typescript-client/todo-api.d.ts .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov

$(VENV)/ready: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/bench: $(VENV)/ready requirements-bench.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

examples/node_modules/ready: $(VENV)/ready examples/package-lock.json
	$(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@
