# One command each; `make` alone lists them. The first one that needs Python packages
# makes a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
JOBS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8000

SPREAD := -n $(JOBS) --dist loadgroup
FAST := not slow and not book and not browser
UNIT := not book and not browser$(if $(CONSTRAINTS),, and not pinned)

# Most of the time of tests and chapters is compilation; these make it a third shorter. A JAX that
# does not know a flag stops at it, so they go with the pinned one, and never with benchmarks.
COMPILE := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 \
  --xla_backend_optimization_level=1
test check book mutants: export XLA_FLAGS ?= $(if $(CONSTRAINTS),$(COMPILE))

.DEFAULT_GOAL := help
.PHONY: help book pdf test check lint notebooks minimal release serve clean bench mutants oldest colab browser repository

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

book: $(STAMP) ## Run every notebook once and build the book in _build/html
	$(BIN)/python book/_tools/build.py

test: lint ## Everything: static checks, all tests, the book, the browser (cheap ones first)
	$(BIN)/python -m pytest $(SPREAD) -m "$(UNIT)"
	$(BIN)/python book/_tools/build.py
	$(BIN)/python -m pytest $(SPREAD) -m "book or browser"

check: lint ## The fast part, about four minutes: static checks and short tests
	$(BIN)/python -m pytest $(SPREAD) -m "$(FAST)"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python book/_tools/export.py --check

notebooks: $(STAMP) ## Write notebooks/*.ipynb from the chapters' .md
	$(BIN)/python book/_tools/export.py

minimal: $(STAMP) ## Write edm_minimal.py, the heart of the package in one file
	$(BIN)/python tools/minimal.py

release: $(STAMP) ## Date the changelog, build wheel and sdist, try both: make release VERSION=0.2.0
	@test -n "$(VERSION)" || { echo "Say which: make release VERSION=0.2.0"; exit 1; }
	$(BIN)/python tools/release.py $(VERSION)

pdf: book ## Print the book into one PDF, _build/html/book.pdf (needs Chromium)
	$(BIN)/python book/_tools/pdf.py

serve: book ## Build the book and show it on http://localhost:8000 (PORT=...)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

clean: ## Remove what was built (the environment in .venv stays)
	rm -rf _build .executed .pytest_cache .ruff_cache build dist
	find edm_tutorial tests book -name __pycache__ -type d -prune -exec rm -rf {} +

bench: $(STAMP) ## Measure beside limits and other packages, under 30 minutes; fills the page's tables
	$(BIN)/python -m benchmarks.sampler
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.likelihood
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.beside
	$(BIN)/python -m benchmarks.unet --peers
	$(BIN)/python -m benchmarks.page

mutants: $(STAMP) ## Plant bugs, known ones and drawn ones: the tests must notice each
	$(BIN)/python tests/mutants/run.py $(if $(SEED),--seed $(SEED)) $(if $(SHARE),--share $(SHARE)) $(if $(RESUME),--resume); \
	  status=$$?; \
	  $(BIN)/python -m benchmarks.page; exit $$status

# All that the extra `test` asks for, each at the lowest version that pyproject.toml allows; but
# arviz-stats, which needs NumPy 2 where the core does not: left out, with the tests of what uses it.
OLD := build/oldest
oldest: ## Run the short tests on the oldest versions that pyproject.toml allows
	@$(check-python)
	$(PYTHON) -m venv --clear $(OLD)
	$(OLD)/bin/python -m pip install -q uv
	echo 'arviz-stats; python_version < "3"' >$(OLD)/without.txt
	$(OLD)/bin/uv pip install -q --python $(OLD) --resolution lowest-direct \
	  --override $(OLD)/without.txt -e '.[test]'
	$(OLD)/bin/python -m pytest $(SPREAD) -m "$(FAST) and not pinned" --ignore tests/book \
	  --ignore tests/test_benchmarks.py --ignore tests/test_colab.py \
	  --ignore tests/test_sbi_calibration.py

colab: ## Run notebooks in a fresh environment, as Colab does: make colab CHAPTERS="00 04"
	@$(check-python)
	$(PYTHON) tools/colab.py $(CHAPTERS)

browser: ## Install Chromium where it is missing (Debian, as root)
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
	  if [ -n "$$name" ] && command -v "$$name" >/dev/null; then exit 0; fi; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; \
	else echo "Please install Chromium, or set CHROMIUM to a Chrome you have."; exit 1; fi

repository: $(STAMP) ## Write your own address everywhere: make repository URL=https://...
	@test -n "$(URL)" || { echo "Say which: make repository URL=https://github.com/you/name"; exit 1; }
	$(BIN)/python book/_tools/repository.py $(URL)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(check-python)
	$(PYTHON) -m venv $(VENV) || { echo "On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q $(addprefix -c ,$(CONSTRAINTS)) -e '.[book,test]'
	@touch $@

define check-python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
  echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
endef
