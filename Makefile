# Needs only make and Python >= 3.11; everything else goes into .venv.
PYTHON ?= python3
OUT ?= demo-output
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Isolated builds read their limits from the environment: older pip from the first, newer pip from the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: demo test lint

demo: $(STAMP)
	$(BIN)/scalegmn-opt demo --out $(OUT)

# Two processes of one thread each: the tests are many and small, so a second thread inside one test
# gains nothing, while a second test beside it halves the time on two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .

# torch goes first, by its exact version, so that no other build of it is downloaded on the way.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] + "; set it with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	@touch $@
