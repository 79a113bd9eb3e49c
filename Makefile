# What people run. Every target makes .venv when it is missing, with the exact versions that were tested.
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin
export PYTHONHASHSEED ?= 0
# What Python compiled is kept: otherwise each of two hundred commands that the tests run compiles all of it anew.
unexport PYTHONDONTWRITEBYTECODE

# A run syncs two hundred small files: tests write to memory where 4 GB of it are set aside, and to a disk elsewhere.
IN_MEMORY := $(shell test -w /dev/shm && df -Pk /dev/shm | awk 'NR == 2 && $$4 >= 4000000 {print "PYTEST_DEBUG_TEMPROOT=/dev/shm"}')

.PHONY: demo browser slurm test test-long faults lint prove mutants bench bench-long models gpu clean

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv

demo: .venv  ## segment real tissue and prove the result
	$(BIN)/overtile demo

test: .venv  ## the proofs that take minutes
	$(IN_MEMORY) $(BIN)/python -m pytest -m 'not long and not cuda' -n 3 --dist loadfile --no-loadscope-reorder

browser:  ## Chromium, in which the tests open reports: where it is absent and Debian's may be installed
	@which chromium chromium-browser google-chrome 2>/dev/null | grep -q . || ( [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null ) || \
	echo "no Chromium, and none could be installed: the tests that open reports will say so"

slurm:  ## SLURM, of which the tests start a node: where it is absent and Debian's may be installed
	@which slurmctld slurmd 2>/dev/null | grep -q slurmd || ( [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurmctld slurmd slurm-client >/dev/null ) || \
	echo "no SLURM, and none could be installed: the tests that submit jobs will say so"

test-long: .venv  ## the proofs that take longer: 50 kills, every tile and block size
	$(BIN)/python -m pytest -m 'long' --timeout 3600

faults: .venv  ## every fault that must be survived, and the table of what survived; about an hour
	$(BIN)/python -m pytest -p tests.support.faults.table -m 'not cuda' --timeout 3600

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/docs/test_architecture.py tests/docs/test_language.py

prove: .venv  ## apply each mutation of tests/mutations to a copy and require a failing test; about 12 minutes
	$(BIN)/python -m tests.mutations.prove

mutants: .venv  ## mutate the pure modules and list the mutants that no test detects; ONLY='pipeline.geometry.*' for one
	$(BIN)/python -m pip install --quiet --constraint constraints.txt mutmut
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(ONLY)
	$(BIN)/mutmut results

bench: .venv  ## speed and memory against their bars; writes bench.json
	$(BIN)/python tests/benchmarks/bench.py

bench-long: .venv  ## a slide of 60,000 px squared in the memory of a small one, 100,000 blocks; 45 minutes, 20 GB of disk
	$(BIN)/python tests/benchmarks/bench.py long scale_long

models: .venv  ## train the default models again from the public data in DATA; about two hours on one core
	$(BIN)/python -m tests.models.nuclei_data $(DATA) models/data
	$(BIN)/overtile train --images models/data/images --masks models/data/masks --cases models/data/cases.csv \
	--config configs/train_nuclei.yaml --pseudo nuclei@3 --fold 0 --out models/nuclei
	$(BIN)/overtile train --images $(DATA)/dsb2018/fluo/images --masks $(DATA)/dsb2018/fluo/labels \
	--cases $(DATA)/dsb2018/groups.csv --config configs/train_fluorescence.yaml --fold 0 --out models/fluorescence

gpu: .venv  ## the CUDA path against the CPU, where there is a device; writes gpu.json
	$(BIN)/python tests/benchmarks/gpu.py

clean:
	rm -rf .venv mutants models demo-result bench.json gpu.json
