# Everything runs in its own environment, .venv. `make help` lists the commands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo nano test check format docs clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 make ...  uses another interpreter (3.10 or newer)"

demo: $(VENV)/core.stamp ## ask the built-in model about the pictures in examples/
	$(BIN)/vl2 ask "What does the image say?" -i examples/word.png
	$(BIN)/vl2 ask "What value does the chart show for Oslo?" -i examples/bars.png
	$(BIN)/vl2 ask "How many blue stars are there?" -i examples/scene.png
	$(BIN)/vl2 ask "图片上写着什么？" -i examples/line.png
	$(BIN)/vl2 ask "What is the total amount?" -i examples/bill.png
	$(BIN)/vl2 locate "green house" -i examples/scene.png --draw demo.png
	@echo "The scene with the box drawn is in demo.png"

GIVEN ?= given
BUDGET ?= 10

nano: $(VENV)/dev.stamp ## train the built-in model anew, from pinned inputs (experiments/nano/README.md); goes on after a stop
	$(BIN)/python -m experiments.nano.inputs --given $(GIVEN) --to data/nano
	nice $(BIN)/python -m experiments.nano.run experiments/nano/recipe.toml --inputs data/nano --to runs/nano --budget $(BUDGET)

test: $(VENV)/dev.stamp $(VENV)/tokenizers.stamp ## run all tests, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: $(VENV)/dev.stamp ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs.stamp ## build the documentation site, with every link inside it checked
	$(BIN)/python -m sphinx --builder html --fail-on-warning --fresh-env --quiet docs build/site
	@echo "The site is in build/site/index.html"

clean: ## remove the environment and all caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src experiments tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml when what it lists is installed.
$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "vl2 needs Python 3.10 or newer, and '$(PYTHON)' is older or missing: run make with PYTHON=python3.12, for example" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "cannot make $(VENV): on Debian and Ubuntu, install the package python3-venv first" >&2; exit 1; }
	@touch $@

$(VENV)/core.stamp: pyproject.toml | $(VENV)/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,data,charts,documents,hf,train,serve,pdf,office,docling]'
	@touch $@ $(VENV)/core.stamp

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs,serve]'
	@touch $@ $(VENV)/core.stamp

# The tokenizers of the released sizes. Where they cannot be had, the tests that compare with them are skipped.
$(VENV)/tokenizers.stamp: tools/get_tokenizers.py | $(VENV)/python.stamp
	@$(BIN)/python tools/get_tokenizers.py $(VENV)/tokenizers && touch $@ || \
	  echo "the released tokenizers could not be fetched: the tests that need them will be skipped" >&2
