# Maintainers' one-liners. Each runs inside .venv, which `make setup` makes (that is `python3 start.py setup`).
# Learners need none of them: see README.md.

PYTHON ?= python3
VENV := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 COURSE_PROGRESS=off $(VENV) -m pytest
TESTS := $(PYTEST) -n 2 --dist worksteal
NBVAL := $(PYTEST) -n 2 --dist loadfile
BROWSER := $(PYTEST) tests/browser
MINUTES := assets/measurements/minutes.json
CH ?=
TITLE ?=
S ?=
TORCH ?=
SHOTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup lab test tests quick notebooks new check-notebooks nbval browser nightly minutes lint types format drift-oldest drift-newest lock base adapters claims architecture cuda vllm measure-gpu mutants fuzz site site-serve site-ref clean

help:  ## list what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## make or refresh .venv
	@$(PYTHON) start.py setup

lab:  ## set up and open JupyterLab
	@$(PYTHON) start.py

test:  ## set up, then everything that CI runs
	@$(PYTHON) start.py test

tests: setup  ## the tests alone, without the notebooks
	$(TESTS) tests

quick: setup  ## the tests without the slow proofs, which CI runs
	$(TESTS) -m "not slow" tests

notebooks: setup  ## lessons/ to notebooks/ and solutions/, executed; CH="02 03" for some chapters
	$(VENV) -m tools.build $(CH)
	$(VENV) -m tools.build_claims

new: setup  ## a new chapter that passes: make new CH=22 TITLE="Vision"
	$(VENV) -m tools.build.new "$(CH)" "$(TITLE)"

check-notebooks: setup  ## fail when a committed notebook is not what its lesson gives; runs nothing
	$(VENV) -m tools.build --check $(CH)

nbval: setup  ## run each chapter once and compare both copies with their stored outputs; CH="02 03" for some
	$(NBVAL) -p tools.pytest_notebooks --no-loadscope-reorder $(if $(CH),$(CH:%=solutions/%_*.ipynb),solutions)

browser: setup  ## JupyterLab in a real Chromium (apt-get install chromium); SHOTS=folder for pictures, CH="02 03" or CH=all for other chapters
	$(VENV) -m pip install --quiet --no-build-isolation -e ".[browser]"
	$(BROWSER) --chapters "$(CH)" $(if $(SHOTS),--shots "$(SHOTS)")

nightly: test  ## all that CI runs, and every learner's notebook by itself, from top to bottom
	$(NBVAL) --nbval --nbval-current-env --nbval-cell-timeout=300 notebooks

minutes: setup  ## measure each chapter on two threads, write the record and the sentence at its head; for a quiet machine
	OMP_NUM_THREADS=2 $(VENV) -m pytest -q -p tools.pytest_notebooks --seconds=$(MINUTES) $(if $(CH),$(CH:%=solutions/%_*.ipynb),solutions)
	$(VENV) -m tools.minutes

lint: setup  ## ruff's rules, for notebooks too, and its format
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .

types: setup  ## the type checker on utils/
	$(VENV) -m basedpyright --project pyproject.toml --pythonpath $(VENV)

format: setup  ## mend what ruff can mend
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

drift-oldest: setup  ## the tests with the oldest versions that pyproject.toml admits; TORCH=2.13.0 for another torch
	$(VENV) -m tools.drift oldest $(if $(TORCH),--torch $(TORCH))

drift-newest: setup  ## the same with the newest, without the lock
	$(VENV) -m tools.drift newest $(if $(TORCH),--torch $(TORCH))

lock: setup  ## write requirements.lock anew from pyproject.toml
	$(VENV) -m tools.lock

base: setup  ## train the tiny base model and write it to assets/ (a GPU: minutes)
	$(VENV) -m tools.train_tiny_base

adapters: setup  ## train the four adapters and write them to assets/adapters/
	$(VENV) -m tools.train_adapters

claims: setup  ## check every proof of the claims ledger and write lessons/claims.md
	$(VENV) -m tools.build_claims

architecture: setup  ## write the tables of files and chapters in ARCHITECTURE.md
	$(VENV) -m tools.architecture

cuda: setup  ## on a CUDA machine: run every notebook, tiny, small and small as on a T4; writes assets/measurements/course.md
	$(VENV) -m tools.run_course
	$(VENV) -m tools.run_course --profile small
	$(VENV) -m tools.run_course --profile small --as-t4

vllm: setup  ## run vLLM on this CPU in an environment of its own (3.5 GB) and record it; then the load of all three servers
	$(VENV) -m tools.serve_vllm
	$(VENV) -m tools.load_test

measure-gpu: setup  ## on a CUDA machine: measure all that the chapters quote of a GPU (S="layer step" for some sections)
	$(VENV) -m tools.measure_gpu $(S)

mutants: setup  ## change one thing in utils/ at a time and see whether a test fails; N=200 of a sample, goes on where it was
	$(VENV) -m tools.mutants --count $(or $(N),50)

fuzz: setup  ## damage files at random and count how their readers end; S=adapters for the kind of file, N=2000 for how many
	$(VENV) -m tools.fuzz $(or $(S),adapters) --count $(or $(N),500)

site:  ## the website, in site/_build/html; needs Node.js, makes .venv-site and site/node_modules
	@$(PYTHON) -m tools.site

site-serve:  ## the same, served at http://127.0.0.1:8000
	@$(PYTHON) -m tools.site serve

site-ref:  ## whether this is the ref that the website is published from; .github/workflows/site.yml asks
	@$(PYTHON) -m tools.site ref

clean:  ## remove caches; .venv stays
	rm -rf .pytest_cache .ruff_cache .hypothesis build site/_build *.egg-info
	find . \( -path ./.venv -o -path ./.venv-site -o -path ./site/node_modules \) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
