# Works with GNU make 3.81. Another interpreter: `make demo PYTHON=python3.12`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt

STUDY := learning_rate lora_rank text_encoder prior_preservation class_prompt text_encoder_prior

.PHONY: demo study test test-all golden lint format bench reliability clean

demo: $(VENV)/.installed ## the main job: a DreamBooth-LoRA run on the built-in miniature
	$(BIN)/boothlab train

study: $(VENV)/.installed ## the six tables of the published study on the miniature; the same command continues it
	for sweep in $(STUDY); do $(BIN)/boothlab sweep $$sweep --no-report hydra/launcher=boothlab_joblib || exit $$?; done
	$(BIN)/boothlab report outputs/study

# Two processes of one thread each: two threads in each of them would wait for one another on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.installed-dev ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev ## all tests: clusters, agents, kills and big pages as well
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

golden: $(VENV)/.installed-dev ## the golden runs of tests/golden anew, after a change that is to move them; says what moved
	$(BIN)/python tests/golden_runs.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed ## wall-clock seconds of the commands; PEERS=path/to/diffusers: against the public script as well
	$(BIN)/python benchmarks/commands.py
ifdef PEERS
	$(BIN)/python benchmarks/peers.py "$(PEERS)" --size tiny
	$(BIN)/python benchmarks/peers.py "$(PEERS)" --size dollhouse --batch 4
else
	@echo "against diffusers' training script: git clone --depth 1 https://github.com/huggingface/diffusers, and make bench PEERS=diffusers"
endif

reliability: $(VENV)/.installed-dev ## 50 kills and every fault for real, in half an hour; writes docs/reliability.md
	$(BIN)/python tests/reliability.py --write docs/reliability.md

clean:
	rm -rf $(VENV)

# A stamp is newer than what it was made from, so a second call installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "boothlab needs Python 3.11 to 3.13 and this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[edit,joblib]'
	touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed
