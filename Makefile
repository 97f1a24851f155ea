# Needs make and Python 3.10 or newer with venv; everything else is installed into .venv at the versions of constraints.txt.
PYTHON ?= python3
PORT ?= 8000
PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_DISABLE_PIP_VERSION_CHECK THINKBACK_DATA

RUN := .venv/bin/python
STAMP := .venv/.installed

.PHONY: book test lint serve bench bench-gpu clean
.DEFAULT_GOAL := book

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -c constraints.txt -e ".[book,test]"
	@touch $@

book: $(STAMP)
	$(RUN) -m bookmaking

test: $(STAMP)
	@started=$$(date +%s); \
	$(MAKE) --no-print-directory lint && OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup; status=$$?; \
	echo "make test: $$(( $$(date +%s) - started )) s"; exit $$status

lint: $(STAMP)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

_build/html/index.html:
	$(MAKE) --no-print-directory book

serve: _build/html/index.html
	$(RUN) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

bench: $(STAMP)
	$(RUN) -m benchmarks

bench-gpu: $(STAMP)
	$(RUN) -m benchmarks --device cuda

clean:
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache
