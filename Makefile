# All that a fresh machine needs is make and Python >= 3.11. Everything else is set up on the way, once:
# uv (private, in .cache/, if there is none), the environment (.venv, from uv.lock), the servers' programs.

PYTHON ?= python3
PROMTOOL ?= promtool
UV_VERSION := 0.13.9
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .cache/uv/bin/uv)
ENVIRONMENT := .venv/.made-from-uv.lock

# pyright looks for its Python on PATH; a build of MinIO looks for uv there.
export PATH := $(CURDIR)/.venv/bin:$(PATH):$(CURDIR)/.cache/uv/bin
# A Python of another kind is never fetched: what is on the machine counts.
export UV_PYTHON_DOWNLOADS := never

# Two processes for two cores. Tests that share a stack carry the mark xdist_group and stay in one of them.
PYTEST := pytest -n 2 --dist loadgroup

# The peers and the profiler come on top of the environment, when they are wanted.
BENCHMARKS := $(UV) run --locked --quiet --group bench $(if $(filter file,$(origin PYTHON)),,--python $(PYTHON)) python -m benchmarks
export FULL CASES CASE REPEATS SCALE MINUTES WORKERS

.DEFAULT_GOAL := help
.PHONY: help demo up down test test-long test-compose histories openapi bench bench-control bench-waiting profile check alerts audit clean programs

help: ## List what one can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: programs ## Set everything up, archive a dataset to pretend tape and back [DATA=DIR: with files of your own]
	@scopemarchiver demo $(if $(DATA),"$(DATA)")

up: programs ## Start the local stack and stay in front (Ctrl-C ends it)
	@scopemarchiver up

down: $(ENVIRONMENT) ## Stop the local stack; its data stay in .local/
	@scopemarchiver down

test: programs ## Run the tests, all but the long ones [TESTS="-k name": some of them]
	@$(PYTEST) -m "not long" $(TESTS)

test-long: programs ## Run all tests
	@$(PYTEST) $(TESTS)

test-compose: programs ## Run docker-compose.yml for real with podman, as root, by stand-ins for images [TESTS="-k name"]
	@pytest tests/compose $(TESTS)

histories: programs ## Record the workflows' histories anew, which `make test` replays [before a release only]
	@rm -f tests/replay/histories/*.json.gz
	@RECORD_HISTORIES=tests/replay/histories $(PYTEST) tests/integration/test_workflows_*.py

openapi: $(ENVIRONMENT) ## Write docs/reference/openapi.yaml anew
	@python -m tests.openapi

bench: programs ## Measure beside rclone and checksums [FULL=1: 60 GB of disk; CASES=a,b; REPEATS=3; SCALE=0.1]
	@$(BENCHMARKS) run

bench-control: programs ## Measure a job of 1,000 tiny datasets [WORKERS=2: in turn with so many processes on each queue]
	@$(BENCHMARKS) control

bench-waiting: programs ## Measure what 1,000 datasets cost that wait for tape [FULL=1: 10,000; MINUTES=10]
	@$(BENCHMARKS) waiting

profile: programs ## Show where the time of one case goes [CASE=archive-tiny; SCALE=0.1]
	@$(BENCHMARKS) profile

check: $(ENVIRONMENT) ## Check format, lint, types, import contracts and the compose file
	@ruff format --check
	@ruff check
	@pyright
	@lint-imports
	@pytest -q -p no:cacheprovider tests/deploy/test_compose.py

alerts: ## Check and test the alert rules by promtool, which comes with Prometheus [PROMTOOL=/path/to/it]
	@$(PROMTOOL) check rules deploy/prometheus/alerts.yml
	@$(PROMTOOL) check config deploy/prometheus/prometheus.yml
	@$(PROMTOOL) test rules deploy/prometheus/alerts.test.yml

audit: $(ENVIRONMENT) ## Ask PyPI for known vulnerabilities of all that uv.lock names, ourselves left out
	@mkdir -p .cache
	@$(UV) export --locked --quiet --all-groups --no-emit-project --output-file .cache/requirements.txt >/dev/null
	@$(UV) run --locked --quiet --group audit pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		--requirement .cache/requirements.txt \
		|| { echo "The audit failed: a package is vulnerable, or PyPI (https://pypi.org) did not answer for one of them; see above." >&2; exit 1; }

clean: ## Remove what the other targets made here, the local stack's data included
	@if [ -e .local/stack.json ] && [ -e $(ENVIRONMENT) ]; then scopemarchiver down; fi
	rm -rf .local .venv .cache .pytest_cache .ruff_cache .hypothesis .schemathesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# First of all, and in sight: neither a test nor the demo is to wait for the minutes that MinIO takes to build.
programs: $(ENVIRONMENT)
	@python -m cli.binaries

$(ENVIRONMENT): uv.lock pyproject.toml | $(UV)
	@$(UV) sync --locked --quiet $(if $(filter file,$(origin PYTHON)),,--python $(PYTHON)) \
		|| { echo "The environment could not be made: see uv's message above; it needs Python >= 3.11 and the package index." >&2; exit 1; }
	@touch $@

# Only where there is no uv on PATH; otherwise the target is uv itself, which is there.
.cache/uv/bin/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer, or name one by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: install Python 3.11 or newer, or name one by PYTHON=..." >&2; exit 1; }
	@rm -rf .cache/uv && $(PYTHON) -m venv .cache/uv >/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments: install its venv module (python3-venv on Debian)." >&2; exit 1; }
	@.cache/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) \
		|| { rm -rf .cache/uv; echo "uv could not be installed: connect to the network, or install uv yourself." >&2; exit 1; }
