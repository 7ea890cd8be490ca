PYTHON  ?= python3
VENV    ?= .venv
SCALE   ?= auto
RUN     ?=
TO      ?=
ARGS    ?=
PROFILE ?= $(if $(filter Darwin,$(shell uname)),plain,$(if $(shell command -v nvidia-smi),gpu,cpu))
UV_VERSION = 0.13.8
VERL_VERSION = 0.9.1
BIN      = $(VENV)/bin
READY    = $(VENV)/.done-$(PROFILE)
RECIPES  = $(patsubst recipes/%.yaml,%,$(wildcard recipes/*.yaml))

# wheels that pip was told about on this machine (pip.conf or PIP_FIND_LINKS); uv wants commas
LINKS    = $(or $(UV_FIND_LINKS),$(shell $(PYTHON) -c "import os,subprocess,sys; o=os.environ.get('PIP_FIND_LINKS') or subprocess.run([sys.executable,'-m','pip','config','get','global.find-links'],capture_output=True,text=True).stdout; print(','.join(o.split()))"))
UV       = $(BIN)/uv pip
ENV_cpu  = UV_FIND_LINKS='$(LINKS)'
# without such wheels uv itself knows where PyTorch publishes its CPU builds
BACKEND_cpu = $(if $(LINKS),,--torch-backend cpu)
COMPILE  = $(UV) compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_39 --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: help setup test test-all check report export lint lock experiments bench bench-minutes bench-grpo bench-experts bench-exports bench-rewards embedded-models $(addprefix recipe-,$(RECIPES))

help: ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1|\2/' | column -t -s '|'
	@echo "  recipes: $(RECIPES)   variables: SCALE=auto|embedded|gpu  ARGS='--set key=value ...'  PROFILE=$(PROFILE)"

setup: $(READY) ## install the locked dependencies into .venv (once)

$(BIN)/uv:
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)

# a platform without a lock (macOS) resolves pyproject.toml itself and runs on the transformers engine
$(VENV)/.done-plain: pyproject.toml | $(BIN)/uv
	@$(UV) install -q --python $(BIN)/python -e '.[test]'
	@touch $@

$(VENV)/.done-%: requirements/%.lock pyproject.toml | $(BIN)/uv
	@echo "setting up $(VENV) from requirements/$*.lock ..."
	@$(ENV_$*) $(UV) sync -q --python $(BIN)/python $(BACKEND_$*) --compile-bytecode requirements/$*.lock
	@$(ENV_$*) $(UV) install -q --python $(BIN)/python --no-deps -e . uv==$(UV_VERSION)
	@$(BIN)/python -c "import torch, transformers, trl, vllm; print('ready: torch', torch.__version__, 'vllm', vllm.__version__)"
	@touch $@

$(addprefix recipe-,$(RECIPES)): recipe-%: $(READY) ## run recipes/<name>.yaml
	@$(BIN)/orchestra run $* --scale $(SCALE) $(ARGS)

check: $(READY) ## validate every recipe
	@$(BIN)/orchestra check $(ARGS)

report: $(READY) ## write report.html again: make report ARGS=runs/40d-embedded
	@$(BIN)/orchestra report $(ARGS)

export: $(READY) ## merge, check, write or publish: make export RUN=40d-embedded TO=hub:you/name (or a folder)
	@$(BIN)/orchestra export $(RUN) $(if $(TO),--to $(TO)) $(ARGS)

# by files: a file's tests share what is dear to make, an engine above all
PARALLEL = -n 2 --dist loadfile

test: $(READY) ## the default test suite, in two processes: make test ARGS='tests/rl -n 0'
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(READY) ## every test, slow ones too
	@$(BIN)/python -m pytest $(PARALLEL) -m '' $(ARGS)

lint: $(READY) ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(READY) ## three seeds of the main recipe at the embedded scale, and minutes to stock TRL's accuracy -> benchmarks/
	@$(BIN)/python -m benchmarks.recipe_seeds $(ARGS)
	@$(BIN)/python -m benchmarks.minutes $(ARGS)

experiments: $(READY) ## every experiment of recipes/ under 3 training seeds, one table -> benchmarks/experiments.md (ARGS='--seeds 1' in a third of the time)
	@$(BIN)/python -m benchmarks.experiments $(ARGS)

bench-minutes: $(READY) ## the second half of bench: ours against stock TRL from the same SFT policies -> benchmarks/minutes.md
	@$(BIN)/python -m benchmarks.minutes $(ARGS)

bench-grpo: $(READY) ## a GRPO step against stock TRL -> benchmarks/grpo_step.md
	@$(BIN)/python -m benchmarks.grpo_step $(ARGS)

bench-experts: $(READY) ## panels of experts under 3 training seeds: routing, growing, merging -> benchmarks/experts.md
	@$(BIN)/python -m benchmarks.experts $(ARGS)

bench-exports: $(READY) ## exports against the policy of a finished run: make bench-exports RUN=runs/40d-embedded -> benchmarks/exports.md
	@$(BIN)/python -m benchmarks.exports $(RUN) $(ARGS)

bench-rewards: $(READY) ## compare verifiers -> benchmarks/rewards.md (others are installed beside, not into, the project)
	@$(UV) install -q --python $(BIN)/python --no-deps --target $(VENV)/graders verl==$(VERL_VERSION) pylatexenc==2.10 || true
	@PYTHONPATH=$(VENV)/graders $(BIN)/python -m benchmarks.rewards $(ARGS)

embedded-models: $(READY) ## train the two shipped models again (about 15 minutes on 2 cores)
	@$(BIN)/python -m models.embedded.train $(ARGS)

lock: | $(BIN)/uv ## resolve requirements/*.lock again
	$(ENV_cpu) $(COMPILE) pyproject.toml requirements/cpu.in --extra test --excludes requirements/cpu.excludes $(BACKEND_cpu) -o requirements/cpu.lock
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null $(COMPILE) pyproject.toml --extra gpu --extra test -o requirements/gpu.lock
