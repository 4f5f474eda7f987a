# Each target sets up what it needs: a virtual environment in .venv with the pinned requirements.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT ?= .
JUPYTER_BOOK = $(BIN)/jupyter-book build . --path-output $(OUT) -W -n --keep-going
export NCSSL_CACHE ?= $(CURDIR)/.venv/ncssl-cache

.PHONY: book serve notebooks demo test check bench clean
.DELETE_ON_ERROR:

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "wanted Python 3.11 or newer; say make PYTHON=..." >&2; exit 2; }
	@echo "Setting up .venv: a few minutes and about 6 GB, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: .venv/ready  ## The book, in _build/html: every chapter is run, which takes about a quarter of an hour the first time.
	$(JUPYTER_BOOK) || { rm -rf $(OUT)/_build/.doctrees; exit 1; }  # so that a warning fails the next build, too
	@$(MAKE) --no-print-directory notebooks
	@echo "Open $(OUT)/_build/html/index.html, or say make serve."

serve: book  ## The book on http://localhost:8000, for this machine alone.
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(OUT)/_build/html 8000

notebooks: .venv/ready  ## The chapters as notebooks, in _build/html/notebooks.
	$(JUPYTER_BOOK) --builder custom --custom-builder jupyter
	$(BIN)/python book/_ext/notebooks.py $(OUT)/_build/jupyter/book $(OUT)/_build/html/notebooks

demo: .venv/ready  ## Pretrain on the built-in images, probe, and draw the curves: three minutes on two cores.
	rm -rf runs/demo
	$(BIN)/ncssl pretrain --epochs 10 --out runs/demo
	$(BIN)/ncssl probe runs/demo
	$(BIN)/ncssl show runs/demo

test: .venv/ready  ## Style, types and the tests: at most 15 minutes on two cores.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

check: export OMP_NUM_THREADS = 1
check: .venv/ready  ## The long checks, in two lanes of one core each: up to an hour. Real images in ../shared/data; the whole book.
	@$(BIN)/pytest -m long -v -rPfE --ignore=tests/test_site.py > .venv/check.log 2>&1 & other=$$!; \
	$(BIN)/pytest -m long -v -rPfE tests/test_site.py; site=$$?; \
	wait $$other; long=$$?; cat .venv/check.log; exit $$((site + long))

bench: .venv/ready  ## Speed and memory against peers, which this installs: ten minutes on two cores.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv _build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
