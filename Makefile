# Needs make, pip and any Python from 3.11 on; everything else goes into .venv.
BIN := .venv/bin
# Two processes; each takes whole files, so that a file compiles once.
PYTEST_ARGS ?= -n 2 --dist loadfile
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)
STORE := esper_jax/urza/store

.PHONY: help install demo test coverage test-all lint format kernels kernels-check
.PHONY: clean install-run install-test site notebooks test-services containers
.DEFAULT_GOAL := help

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

install: install-run  ## into .venv, to run it: .venv/bin/python main.py --help
	@echo "to run it: .venv/bin/python main.py --help, or make demo;" \
	  "scripts of yours: .venv/bin/python FILE, from any folder"

demo: install-run  ## grow a network on handwritten digits, beside a control
	$(BIN)/python main.py --config=configs/digits.py --control \
	  --workdir=$(DEMO)

test: lint  ## lint, type check and the quick tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

coverage: install-test  ## the quick tests, half as fast, and what they miss
	$(BIN)/python -m pytest --cov --cov-report= $(PYTEST_ARGS)
	.ci/coverage $(BIN)

test-all:  ## every test at its full count on Python 3.11 and 3.12
	PYTEST_ARGS='$(PYTEST_ARGS)' .ci/full

# None is skipped: what is missing is installed, or the target fails.
test-services: install-test  ## tests of Redis and a browser, which it installs
	.ci/services
	ESPER_TEST_SERVICES=1 $(BIN)/python -m pytest -m services tests/services

containers: install-test  ## build the images and run them, with an engine
	.ci/containers $(BIN)

lint: install-test  ## ruff and pyrefly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: install-test  ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site:  ## the documentation as a site, in build/site
	@.ci/venv .venv-docs '[docs]'
	.venv-docs/bin/python -m mkdocs build --strict --quiet

notebooks: install-test  ## take their outputs out, renew their install cells
	$(BIN)/python -m notebooks.make

kernels: install-test  ## compile the kernels that the package brings
	$(BIN)/python -m esper_jax.urza build --dir=$(STORE) --prune

kernels-check: install-test  ## compile them again and compare byte for byte
	$(BIN)/python -m esper_jax.urza build --dir=$(STORE) --check

clean:  ## remove environments, caches and builds; runs/ stays
	rm -rf .venv .venv-docs .venv-py311 .venv-py312 build dist .coverage .coverage.*
	rm -rf .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-run:
	@.ci/venv .venv

install-test:
	@.ci/venv .venv '[test,dev]'
