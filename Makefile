PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo demo-audit test fuzz lint type check testbed retrained bench-uce bench-update bench-gpu bench-uce-stacked bench-filter-roc
.DEFAULT_GOAL := check

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## erase "church" from the model in the box, recover it with the key, show and measure it
	$(BIN)/expunge demo --out runs/demo

demo-audit: setup  ## the same, and an audit of its edit with a verdict (about three minutes more; goes on with what `make demo` left)
	$(BIN)/expunge demo --out runs/demo --resume --audit

test: setup  ## a worker a core, of one thread each; `.venv/bin/pytest tests/maths` for a part in one process
	$(BIN)/pytest -n auto --dist worksteal

fuzz: setup  ## ten minutes of what users may mistype or hand over: exit 0, or 2 with one line
	$(BIN)/python tests/fuzz/fuzz_cli.py --seconds 600 --seed $$(date +%s)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: setup
	$(BIN)/basedpyright

check: test lint type

testbed: setup  ## rebuild the testbed from public artwork (npm needed; about three hours on two cores with bfloat16; resumes)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[recipe]'
	$(BIN)/python -m expunge.recipe --cache runs/testbed-2

retrained: setup  ## train the testbed without split v1's targets, the weapons and the ink style (npm needed; hours; resumes)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[recipe]'
	$(BIN)/python -m expunge.recipe --cache runs/retrained \
	  --without "church, delivery truck, fuel pump, ink style, radio, trumpet, weapon"

bench-uce: setup  ## UCE's time and memory on a random-weight checkpoint of SD1.4's size
	$(BIN)/python benchmarks/uce_size.py

bench-update: setup  ## one update of ESD and KPOP at SD1.4's size: time and memory (about 15 minutes)
	$(BIN)/python benchmarks/update_size.py

bench-gpu: setup  ## what a GPU does with an erasure of each kind: eight minutes at most; skipped without CUDA
	$(BIN)/python benchmarks/gpu.py

bench-uce-stacked: setup  ## two UCE edits stacked and detached again (about 3 minutes)
	$(BIN)/python benchmarks/uce_stacked.py

bench-filter-roc: setup  ## how well a judge's filter tells weapons from other drawings (about a minute)
	$(BIN)/python benchmarks/filter_roc.py

bench-%: setup benchmarks/%.toml  ## run a plan of benchmarks/ and put its records, summary and table beside it; resumes
	$(BIN)/expunge bench benchmarks/$*.toml
	$(BIN)/python benchmarks/keep.py $*
