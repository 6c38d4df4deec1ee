# Each target sets itself up: Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-long slow other-processors oldest-webdataset oldest-triton bench evidence times lint \
  types unit interp aot vectors fuzz format clean

help:
	@echo "make demo       distil, pack, inspect and train on real digits: no download, no GPU"
	@echo "make test       lint, types and tests: what CI runs"
	@echo "make test-long  the suites that take longer, and the oldest webdataset and Triton"
	@echo "make docs       build the documentation into docs/_build, with warnings as errors"
	@echo "make bench      every comparison with other ways to keep labels: DATA='DIR ...' BASE=... PROFILE=small"
	@echo "make aot        compile every shipped kernel for sm_80 and sm_90, against the committed budget"
	@echo "make vectors    rewrite the golden files of the format; review the diff"
	@echo "make fuzz       bounded random runs over four parts of the reader, and over labels"
	@echo "make format     rewrite the source in the project's format"

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/hello demo -o demo/

# Strict: a link that leads nowhere, a name without a page or a docstring that does not parse fails.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

test: lint types unit interp

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

# A process for each core, and the tests of a file in one of them, whose fixtures they share.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
unit: $(STAMP)
	OMP_NUM_THREADS=1 HELLOFMT_REQUIRE=aot $(BIN)/pytest -q $(SIDE_BY_SIDE) -m "not slow and not interp and not gpu" --durations=15

# The Triton interpreter is chosen before import, so its tests have a process of their own.
interp: $(STAMP)
	HELLOFMT_REQUIRE=interp TRITON_INTERPRET=1 $(BIN)/pytest -q -m "interp and not slow" tests/kernels

test-long: test slow other-processors oldest-webdataset oldest-triton

slow: $(STAMP)
	$(BIN)/pytest -q -m "slow and not interp and not gpu" --durations=30
	TRITON_INTERPRET=1 $(BIN)/pytest -q -m "interp and slow" tests/kernels

# What computes, once more with the instructions of other processors: oneDNN's products as on a
# machine without AVX-512, and ATen's loops as on one without AVX2. A test that holds the bits of
# one processor's matrix product fails here.
# Kernels come last: torch refuses gradients in processes that are forked once it has compiled, and
# those of the ranks' tests are.
COMPUTING := tests/distillation tests/student tests/teacher tests/loading tests/spec/test_numbers.py tests/spec/test_towers.py \
  tests/projector tests/kernels
other-processors: $(STAMP)
	for other in ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default; do env $$other $(BIN)/pytest -q \
	  -m "not slow and not interp and not aot and not gpu" $(wildcard $(COMPUTING)) || exit 1; done

# The oldest versions that we promise to work with lie in folders before everything that .venv has.
.cache/webdataset-0.2.86/.installed: PACKAGES = webdataset==0.2.86 braceexpand
# Triton 3.6's interpreter makes numbers of arrays, which NumPy 2.4 refuses and 2.3 warns of.
.cache/triton-3.6.0/.installed: PACKAGES = triton==3.6.0 numpy==2.3.5
.cache/%/.installed: $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) \
	  $(PACKAGES) || { echo "make: no $(PACKAGES) for this Python here, so $* stays untested" >&2; exit 1; }
	@touch $@

oldest-webdataset: .cache/webdataset-0.2.86/.installed
	PYTHONPATH=$(CURDIR)/$(<D) HELLOFMT_VERSIONS=webdataset==0.2.86 $(BIN)/pytest -q \
	  -m "not slow and not gpu" tests/interop tests/sources/test_pack.py

# Triton 3.6 has no budget: its kernels must not spill and must use tensor cores.
oldest-triton: .cache/triton-3.6.0/.installed
	PYTHONPATH=$(CURDIR)/$(<D) HELLOFMT_VERSIONS=triton==3.6.0,numpy==2.3.5 HELLOFMT_REQUIRE=aot \
	  $(BIN)/pytest -q -m aot tests/tools
	PYTHONPATH=$(CURDIR)/$(<D) HELLOFMT_VERSIONS=triton==3.6.0,numpy==2.3.5 HELLOFMT_REQUIRE=interp \
	  TRITON_INTERPRET=1 $(BIN)/pytest -q -m "interp and not slow" tests/kernels \
	  -W "ignore:Conversion of an array with ndim:DeprecationWarning"

# Resumable by the cell; without DATA, the digits alone. Seconds are of this machine, so the pages
# of times are written when nothing else runs.
PROFILE ?= small
bench: evidence
	$(MAKE) times
	$(BIN)/python benchmarks/readme.py

evidence: $(STAMP)
	$(BIN)/python benchmarks/evidence.py --profile $(PROFILE) $(DATA:%=--data %) $(BASE:%=--base %) $(MORE)
	$(BIN)/python benchmarks/report.py --profile $(PROFILE)

times: $(STAMP)
	for name in archive "kernels --device cpu" loading step streaming bfloat16; do set -- $$name; \
	  $(BIN)/python benchmarks/$$1.py --out benchmarks/results/$$1-cpu $$2 $$3 || exit 1; done

aot: $(STAMP)
	$(BIN)/python tools/aot.py

# Rewrites the golden files and the schema; a person reads the diff.
vectors: $(STAMP)
	$(BIN)/python tests/spec/make_vectors.py

# Random inputs, guided by coverage where atheris is installed.
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py --runs 50000

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo
