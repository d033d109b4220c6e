# Every target but "help" and "clean" is enough alone on a fresh machine: it calls "setup" first.
#   make setup PYTHON=/path/to/python3.11   the Python that makes the environment (3.10 to 3.12; default: found)
#   make setup VENV=/path/to/folder         an environment elsewhere, made or yours (default: .venv)

VENV ?= .venv
PYTHON ?=
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -q --durations=10
# Processes that share the tests, file by file, with a thread each: two cores are used better than by two threads of one.
JOBS ?= 2

# Threads that wait give their core away after a moment. Where other programs compete for two cores, a training step is
# otherwise many times slower.
export GOMP_SPINCOUNT ?= 20000

.DEFAULT_GOAL := help
.PHONY: help setup demo train words test test-slow lint clean

help:
	@echo "make setup      make the environment in $(VENV); a second time it only checks"
	@echo "make demo       data, training, evaluation and drawings in output/demo, at most 15 minutes on 2 cores"
	@echo "make train      the same with the full small data set, up to 60 minutes on 2 cores"
	@echo "make words      longer still, with a thousand names more: for names that no training has seen"
	@echo "make test       the tests without network, GPU and released weights, a few minutes"
	@echo "make test-slow  the long tests, full-size comparisons included"
	@echo "make lint       how the source is written: ruff and mypy; \"ruff check --fix\" and \"ruff format\" mend most of it"
	@echo "make clean      remove .venv, output and caches"

# The program finds the Python for the environment itself; any Python 3.7 or newer can start it.
setup:
	@for launcher in "$(PYTHON)" python3 python3.12 python3.11 python3.10 python; do \
	    if "$$launcher" -c "import sys; sys.exit(sys.version_info < (3, 7))" 2>/dev/null; then \
	        exec "$$launcher" tools/setup_env.py --venv "$(VENV)" --python "$(PYTHON)"; \
	    fi; \
	done; \
	echo "make setup: expected Python 3.10 to 3.12, found none; way out: install one" \
	    "(Debian and Ubuntu: apt-get install python3 python3-venv)" >&2; \
	exit 1

test: setup
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not slow and not gpu and not weights"

# pytest ends with 5 when nothing is marked slow.
test-slow: setup
	$(PYTEST) -m "slow and not gpu and not weights" || [ $$? -eq 5 ]

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

demo: setup
	$(RUN) tools/make_demo.py

train: setup
	$(RUN) tools/make_demo.py --full

words: setup
	$(RUN) tools/make_demo.py --words

clean:
	rm -rf .venv output build glipv2_d2.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./.git/*" -prune -exec rm -rf {} +
