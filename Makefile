# The two commands of the README, and what they are made of. Everything lands in .venv/ and $RECSYS_HOME.
PYTHON ?= python3
VENV ?= .venv
DATASET ?= ml-100k
BIN := $(VENV)/bin

.PHONY: docs quickstart test lint types contracts pytest format audit up down clean help

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## from nothing to recommendations over HTTP (DATASET=ml-1m and so on)
	$(BIN)/recsys quickstart --dataset $(DATASET)

test: lint types contracts pytest  ## everything that must hold: lint, types, import contracts, tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml recsys serving pipelines

types: $(VENV)/.installed
	$(BIN)/mypy

contracts: $(VENV)/.installed
	$(BIN)/lint-imports

pytest: $(VENV)/.installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: $(VENV)/.installed  ## the documents as a site, in .site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.installed  ## rewrite the code in the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Asks the package index about every pinned version; it needs the network, and is no part of `make test` for that. In an
# environment of its own, since what it brings has no place beside the pins. Without --strict, versions that could not
# be looked up would pass as clean.
audit: $(VENV)/.installed  ## known weaknesses of the pinned dependencies (asks the package index) and of the code
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml recsys serving pipelines
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

up:  ## train, serve and watch in containers; secrets in .env, see serving/deploy/example.env
	docker compose up --build --detach

down:  ## stop the containers; data stay in their volumes
	docker compose down

clean:  ## remove the virtual environment (runs and data in RECSYS_HOME stay)
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
