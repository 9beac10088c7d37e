# Two targets are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process of ours per core: BLAS and Numba threads would fight over them.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1
export NUMBA_NUM_THREADS ?= 1

.PHONY: demo test chaos fuzz soak format clean bundle bundle-test

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[model,dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python tests/demo.py

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

# Two daemons and whatever may happen to them, 200 kills; CHAOS='--kills 20 --seed 7 --json'.
chaos: $(VENV)/installed
	MPCD_CRASHES=60 $(BIN)/pytest tests/system/test_crash_making.py
	$(BIN)/python -m tests.chaos $(CHAOS)

# Eight hospitals, 1,000 sessions, 20,000 files and half an hour; SOAK='--minutes 5 --json'.
soak: $(VENV)/installed
	$(BIN)/python -m tests.soak $(SOAK)

# A million inputs to everything that decodes what others wrote; FUZZ='--scale 0.1 --targets frames,dicoms --seed 7'.
fuzz: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[model,dev,fuzz]'
	$(BIN)/python -m tests.fuzz $(FUZZ)
	MPCD_TAMPER_ALL=1 $(BIN)/pytest tests/protocol/test_tampering.py

# Everything that a machine without internet needs (docs/install.md); BUNDLE=model with torch.
bundle: $(VENV)/installed
	systemd/bundle.sh --python $(BIN)/python $(if $(filter model,$(BUNDLE)),--model)

bundle-test: bundle
	MPCD_BUNDLE=$$(ls -t dist/mpcd-*.tar.gz | head -1) $(BIN)/pytest tests/test_bundle.py

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .demo build dist *.egg-info
