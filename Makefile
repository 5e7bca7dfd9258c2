# One word per chore; `make` lists them. Needs Python 3.11 or newer with venv, and nothing else.
#
#   make test ARGS="-k routing"       passes arguments to pytest
#   make test WORKERS=1               one test process (unless said, one more than there are cores, eight at most)
#   make VENV=.venv-mine test         another virtual environment
#   make PYTHON=/path/to/python demo  another Python to make it with

VENV ?= .venv
# One more than there are cores: many tests wait for a lease to run out.
WORKERS ?= $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
ARGS ?=
export PYTHON

# Directories of scripts, once they hold some.
SCRIPTS = $(sort $(dir $(wildcard bench/*.py examples/*.py)))

PYTEST = $(VENV)/bin/python -m pytest -n $(WORKERS) --maxprocesses=8 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-full check format clean venv venv-check

help: ## List the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: venv ## Run the demo: four shards, two executors, a workflow per file of the standard library
	@$(VENV)/bin/sharded-wf demo

bench: venv ## Measure speed beside the bare loop, and latency: a regression run of under 3 minutes
	@$(VENV)/bin/python -m bench run --workload noop --seconds 10
	@$(VENV)/bin/python -m bench run --workload steps --steps 3 --seconds 10
	@$(VENV)/bin/python -m bench run --workload mixed --embedded 2 --rate 20 --seconds 10
	@$(VENV)/bin/python -m bench latency --rounds 200

# Who names tests wants just these.
test: venv ## Run the tests, sampled and seeded (repeat a run with SHARDED_WF_TEST_SEED=...)
	@SHARDED_WF_TEST_SAMPLED=$(if $(ARGS),0,1) $(PYTEST) $(ARGS)

test-full: venv-check ## Run every case, on all Postgres and Python versions that are here
	@.ci/other-pythons $(VENV)
	@for version in 18 16 15; do \
		if $(VENV)/bin/python -m tests.support.postgres $$version; then \
			SHARDED_WF_TEST_FULL=1 SHARDED_WF_TEST_POSTGRES=$$version $(PYTEST) $(ARGS) || exit 1; \
		fi; \
	done

check: venv-check ## Check style, types and the layers of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy sharded_wf tests $(SCRIPTS)
	@$(VENV)/bin/lint-imports
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright

format: venv-check ## Format the code, and mend what the linter can
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

clean: ## Remove what the chores made: environments, caches, builds
	rm -rf .venv .venv-3.* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@.ci/install $(VENV) embedded,fast,test

venv-check: venv
	@.ci/install $(VENV) embedded,fast,test,check,bench
