# Everything here runs in .venv, which the first target that needs it creates.
#   make test ARGS="-k attention -x"     arguments for the command behind a target
#   make TORCH="torch==2.12.1" VENV=/tmp/other test
#   LLAMA_FAST_BUILD=0 make demo         without a C++ compiler: the slow reference backend

VENV   ?= .venv
PYTHON ?= python3
TORCH  ?= torch==2.13.0
ARGS   ?=
# A part that does not compile is an error here; a plain `pip install` does without it.
export LLAMA_FAST_BUILD ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Python's bytecode is written when a module is first imported: pip would compile 19,000 files, of which
# most are never read, and hundreds of processes of the tests would compile the package anew.
install := pip install --no-compile
unexport PYTHONDONTWRITEBYTECODE

py        := $(VENV)/bin/python
csrc      := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
build_py  := setup.py $(wildcard build_*.py)
# Folders are among the prerequisites so that a deleted source is noticed too.
native    := $(csrc) $(shell find csrc -type d) $(build_py)
built     := build/native/.built
installed := $(VENV)/.installed
for_demo  := $(VENV)/.demo
triton_oldest := build/triton-3.6.0
oldest := build/oldest-venv
kernels_pair := build/transformers-5.22.2-kernels-0.17.2
litgpt := build/litgpt-0.5.13
docs_env := build/docs-venv
sdist_env := build/sdist-venv
audit  := build/audit-venv
suite_limit := 100,hellaswag=2000,arc_*=all,piqa=all,social_iqa_norm=all,winogrande=all,openbookqa_ratio=all,commonsense_qa_7shot=all,boolq_ratio=all,mmlu_5shot_*=4,minerva_math_*=15,bbh_3shot_*=4,agieval_*=13

AARCH64_CXX  ?= aarch64-linux-gnu-g++
KERNEL_FLAGS := -std=c++17 -O2 -Wall -Werror -Wframe-larger-than=32768 -Icsrc

.DEFAULT_GOAL := help
.PHONY: help demo test test-all docs fuzz test-triton test-cuda test-oldest test-oldest-all test-torch-abi test-torch test-kernels audit gpu-compile gpu-compile-oldest lint lint-workflows lint-docker format bench bench-cpu bench-history bench-dropin bench-train train-proof bench-eval eval-suite eval-page model-support build wheel wheels sdist release-notes test-sanitize aarch64 aarch64-env test-aarch64 clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Its extra installs 36 packages, 343 MB, beside torch; that of the tests 124, 1026 MB.
demo: $(if $(wildcard $(installed)),$(installed),$(for_demo)) $(built)  ## load, run, train and score a real model (ARGS=--quick for less)
	$(VENV)/bin/llama-fast demo $(ARGS)

# Two at a time, each with a stretch of the tests, so that what a module's tests share is mostly made
# once. Waiting threads of OpenMP sleep: beside another process they would hold up those that they
# wait for.
pytest := OMP_WAIT_POLICY=PASSIVE $(py) -m pytest -n 2 --dist worksteal

# pytest ends with 5 where it found no test: of the ones asked for, none may be about Triton.
test: $(installed) $(built) $(docs_env)/.installed  ## run the tests, the Triton kernels' in Triton's interpreter
	$(pytest) $(ARGS)
	TRITON_INTERPRET=1 $(pytest) $(ARGS) || [ $$? -eq 5 ]

test-all: export LLAMA_FAST_ALL_CASES = 1
test-all: test  ## the same, with the cases that the interpreter is spared (every night)

# A minute of it is among the tests (tests/fuzz). What it finds lies in build/fuzz.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(shell sed -n 's/^    "\([a-z0-9-]*\)": Target.*/\1/p' tests/fuzz/readers.py)
fuzz: $(VENV)/.dev  ## fuzz each reader of files for ten minutes (FUZZ_SECONDS, FUZZ_TARGETS)
	for target in $(FUZZ_TARGETS); do \
	$(py) -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) $(ARGS) || failed="$$failed $$target"; \
	done; test -z "$$failed" || { echo "found faults:$$failed"; exit 1; }

test-triton: $(installed) $(built)  ## run the Triton kernels' tests alone
	TRITON_INTERPRET=1 $(pytest) tests/ops $(ARGS)

# The CUDA kernels, compiled for the CPU and run there by an emulation of the GPU.
test-cuda: $(installed) $(built)  ## run the CUDA kernels' tests without a GPU
	LLAMA_FAST_EMULATE_CUDA=1 $(py) setup.py -q build_ext
	LLAMA_FAST_EMULATE_CUDA=1 $(pytest) tests/ops tests/cuda -k cuda $(ARGS)

# In an environment of its own, with everything that pyproject.toml requires at exactly its lower
# bound. What depends on other packages most is tested at each change, the rest every night.
pytest_oldest := OMP_WAIT_POLICY=PASSIVE $(oldest)/bin/python -m pytest -n 2 --dist worksteal -k "not flash_attn"
test-oldest: $(oldest)/.installed $(built)  ## run tests with the lowest versions of what is required
	$(pytest_oldest) -m "not slow and not compile" tests/models tests/tokenizers tests/integrations $(ARGS)

test-oldest-all: $(oldest)/.installed $(built)  ## the same with the tests of data, training, evaluation and commands
	$(pytest_oldest) tests/models tests/tokenizers tests/integrations tests/data tests/train tests/eval tests/cli $(ARGS)

# transformers 5.23 and 5.24 need a later `kernels` than PyPI has; this is the newest pair that fits.
# The repository comes after it on the path, because our folder kernels/ has the name of the package.
test-kernels: $(installed) $(built)  ## run the tests of the kernel layers with the Hub's `kernels`
	test -d $(kernels_pair) || { \
	$(py) -m $(install) --quiet --no-deps --target $(kernels_pair).part transformers==5.22.2 kernels==0.17.2 && \
	mv $(kernels_pair).part $(kernels_pair); }
	PYTHONPATH=$(CURDIR)/$(kernels_pair):$(CURDIR) HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE \
	$(VENV)/bin/pytest -n 2 --dist worksteal -o pythonpath= tests/integrations/hub_kernels \
	tests/integrations/test_model_zoo.py -k "hub_kernels or report" $(ARGS)

# Headers and libraries of both are unpacked into build/ (1.4 GB to download, 1 GB to keep).
test-torch-abi: $(VENV)/.torch  ## compile and link against the lowest torch and 2.11
	$(py) tests/build/torch_abi.py $(ARGS)
	LLAMA_FAST_EMULATE_CUDA=1 $(py) tests/build/torch_abi.py $(ARGS)

# One library, compiled against the lowest torch, serves every later one. Not in .ci/run: on x86-64
# pip installs CUDA builds of torch, of 0.5 to 1 GB. `make clean` removes the environments.
test-torch: $(built)  ## run tests/ops with another torch (VERSION=2.11.0)
	@test -n "$(VERSION)" || { echo "expected VERSION, as in: make $@ VERSION=2.11.0"; exit 2; }
	$(py) tests/build/torch_abi.py lowest
	$(py) tests/build/torch_env.py $(VERSION)
	LLAMA_FAST_LIBRARY=$(CURDIR)/build/native/lowest/libllama_fast.so OMP_WAIT_POLICY=PASSIVE \
	build/torch-env-$(VERSION)/bin/python -m pytest -n 2 --dist worksteal \
	tests/ops tests/test_torch_internals.py $(ARGS)

# In an environment of its own, which needs neither torch nor the package: docstrings are read, not
# imported. A broken link or anchor, or a missing docstring, is an error.
docs: $(docs_env)/.installed  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(docs_env)/bin/mkdocs build $(ARGS)

# Asks the advisory service of PyPI about each package of .venv, so it needs the network and is not
# among what .ci/run does without: run it before a release. pip-audit is beside .venv, not in it.
audit: $(installed)  ## look for packages in .venv with known security holes (needs the network)
	test -x $(audit)/bin/pip-audit || { \
	$(PYTHON) -m venv $(audit) && $(audit)/bin/python -m $(install) --quiet pip-audit==2.10.1; }
	$(py) -m pip freeze --exclude-editable > $(audit)/installed.txt
	$(audit)/bin/pip-audit --requirement $(audit)/installed.txt --no-deps --disable-pip $(ARGS)

gpu-compile: $(installed)  ## compile the GPU kernels for sm_80, sm_90, sm_100 (ARGS="rope --quiet")
	$(py) kernels/_compile.py $(ARGS)
	$(py) csrc/cuda/report.py $(ARGS)

# pip puts it beside, not in place of, the Triton of .venv.
gpu-compile-oldest: $(installed)  ## the same with the oldest Triton that is supported, for sm_90
	test -d $(triton_oldest) || $(py) -m $(install) --quiet --no-deps --target $(triton_oldest) \
	triton==3.6.0
	PYTHONPATH=$(triton_oldest) $(py) kernels/_compile.py --arch 90 --defaults --quiet $(ARGS)

lint: $(VENV)/.dev lint-workflows lint-docker  ## ruff, clang-format, mypy, workflows, images; no file is changed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(csrc)
	$(VENV)/bin/mypy

# hadolint's package is for Linux on x86-64 alone.
lint-docker: $(VENV)/.dev  ## check the files that describe the Docker images
	if [ -x $(VENV)/bin/hadolint ]; then $(VENV)/bin/hadolint --failure-threshold style examples/docker/*.Dockerfile; \
	else echo "hadolint is not installed here: the Dockerfiles are not checked"; fi

# The scripts inside the workflows too, which actionlint hands to shellcheck.
lint-workflows: $(VENV)/.dev  ## check the workflows and the shell scripts
	PATH="$(abspath $(VENV))/bin:$$PATH" actionlint
	$(VENV)/bin/zizmor --quiet --offline .github
	$(VENV)/bin/shellcheck .ci/run benchmarks/run_gpu.sh docs/slurm.sh

format: $(VENV)/.dev  ## let ruff and clang-format rewrite the sources
	$(VENV)/bin/ruff check --fix --exit-zero .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(csrc)

bench: $(installed) $(built)  ## time every op and baseline with pytest-benchmark
	$(py) -m pytest benchmarks --benchmark-only $(ARGS)

bench-cpu: $(installed) $(built)  ## measure the suite: table, plots and JSON in benchmarks/results
	$(VENV)/bin/llama-fast bench --out benchmarks/results $(ARGS)

# HISTORY: folder of the history, which the nightly workflow keeps on a branch.
HISTORY ?= build/history
bench-history: $(installed) $(built)  ## measure the suite, add it to a history and draw that
	rm -rf build/bench
	$(VENV)/bin/llama-fast bench --out build/bench $(ARGS)
	$(py) -m benchmarks.history build/bench/*.json --history $(HISTORY)

bench-dropin: $(installed) $(built)  ## measure SmolLM2 of transformers, stock beside patched
	$(py) -m benchmarks.dropin $(ARGS)

bench-eval: $(installed) $(built)  ## measure evaluation (ARGS="--data-dir DIR") and decoding
	$(py) -m benchmarks.evaluation $(ARGS)
	$(py) -m benchmarks.decode

# Beside .venv: it asks for older versions of what the tests use, of which it needs nothing here.
bench-train: $(installed) $(built)  ## measure the training loop beside litgpt's and Trainer
	test -d $(litgpt) || { \
	$(py) -m $(install) --quiet --no-deps --target $(litgpt).part litgpt==0.5.13 && \
	mv $(litgpt).part $(litgpt); }
	$(py) -m benchmarks.train_loop --out benchmarks/results $(ARGS)

# The texts: DATA=folder with corpora/ in it.
train-proof: $(installed) $(built)  ## train on real text from scratch, ten minutes a corpus
	$(py) -m benchmarks.train_proof $(if $(DATA),--data $(DATA)) --out benchmarks/results \
	--picture docs/images/train-proof.png $(ARGS)

pictures: $(installed) $(built)  ## draw the pictures of the documentation again (ARGS="results demo training")
	PYTHONPATH=. $(py) docs/tools/pictures.py $(ARGS)

# DATA: the mirror of the data sets (docs/evaluation.md). 12 minutes on 2 quiet threads. The links are for the
# command in the report, which has no paths of a machine.
eval-suite: $(installed) $(built)  ## evaluate MODEL=FILE on the suite with DATA=DIR and publish the run
	test -e "$(MODEL)" -a -d "$(DATA)" || { echo "eval-suite: expected MODEL=FILE DATA=DIR"; exit 2; }
	mkdir -p build/eval-suite
	ln -sfn $(abspath $(DATA)) build/eval-suite/data
	ln -sfn $(abspath $(MODEL)) build/eval-suite/$(notdir $(MODEL))
	cd build/eval-suite && $(abspath $(VENV))/bin/llama-fast eval $(notdir $(MODEL)) --suite llama2 \
	--dtype bfloat16 --data-dir data --allow-code --limit '$(suite_limit)' --out smollm2-llama2 $(ARGS)
	$(py) -m benchmarks.eval_page --run build/eval-suite/smollm2-llama2 --picture docs/images/eval-report.png

eval-page: $(VENV)/.dev  ## draw the published page of the suite again, and its picture (needs chromium)
	$(py) -m benchmarks.eval_page --picture docs/images/eval-report.png $(ARGS)

model-support: $(installed) $(built)  ## write docs/model-support.md: each architecture, patched
	$(py) -m benchmarks.model_support $(ARGS)

build: $(VENV)/.torch  ## compile what changed
	$(py) setup.py -q build_ext --inplace
	@mkdir -p $(dir $(built)) && touch $(built)

# Compiled against the lowest torch, tested with $(TORCH): build_wheels.py says how.
wheel: $(VENV)/.torch  ## build the wheel for this processor into dist/, and test it without a compiler
	TORCH="$(TORCH)" $(py) build_wheels.py --quick $(ARGS)

# Needs g++-aarch64-linux-gnu. Runs what is for Arm if `make aarch64-env` was there before.
wheels: $(VENV)/.torch  ## build the release: an sdist, wheels for x86-64 and aarch64, all op tests
	TORCH="$(TORCH)" $(py) build_wheels.py $(ARGS)

# twine: PyPI refuses a README that it cannot show.
sdist:  ## build the source distribution into dist/
	test -x $(sdist_env)/bin/twine || { $(PYTHON) -m venv $(sdist_env) && \
	$(sdist_env)/bin/python -m $(install) --quiet build==1.6.1 twine==7.0.0; }
	rm -f dist/*.tar.gz
	$(sdist_env)/bin/python -m build --sdist --outdir dist
	$(sdist_env)/bin/twine check --strict dist/*.tar.gz

release-notes:  ## check a release's tag and write its notes (TAG=v0.1.0)
	$(PYTHON) .ci/release_notes.py "$$TAG" build/release-notes.md

# Leaks are not looked for: Python itself keeps memory until it exits. Memory that cannot be had is an
# error to be tested, not the end of the process. libstdc++ is preloaded
# because AddressSanitizer has to find its exception functions before the first library throws.
# Without pytest's file-level capture and fault handler, so that a sanitizer's report is seen.
# Second derivatives are slow and made of torch's own operators: they are left out, and so is what
# measures memory, of which the sanitizer itself takes some.
# Other instruction sets are run by tests/ops/test_isa.py, with the same library.
test-sanitize: $(installed)  ## op tests under AddressSanitizer and UBSan, threads under ThreadSanitizer
	$(py) tests/sanitize/threads.py
	LLAMA_FAST_SANITIZE=1 $(py) setup.py -q build_ext
	LLAMA_FAST_LIBRARY=$(CURDIR)/build/sanitize/libllama_fast.so OMP_WAIT_POLICY=PASSIVE \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) \
	$$($(CXX) -print-file-name=libstdc++.so.6)" \
	$(py) -m pytest -n 2 tests/ops -m "not slow and not compile and not gpu" \
	--capture=sys -p no:faulthandler --ignore tests/ops/test_reference.py \
	--deselect tests/ops/test_autograd.py::test_second_derivatives \
	--deselect tests/ops/test_autograd.py::test_func_second_derivatives \
	--deselect tests/ops/test_linear_cross_entropy.py::test_peak_memory $(ARGS)

# For each instruction set, with the flags that the build gives it.
aarch64:  ## compile the kernels for 64-bit Arm (needs g++-aarch64-linux-gnu)
	@mkdir -p build/aarch64
	$(PYTHON) -c 'from build_isas import ISAS; [print(i, *f) for i, f in ISAS["aarch64"].items()]' | \
	while read -r isa flags; do printf '%s\n' csrc/cpu/*.cpp | xargs -P 2 -I {} sh -c "$(AARCH64_CXX) \
	$(KERNEL_FLAGS) $$flags -DLLAMA_FAST_ISA=$$isa -DLLAMA_FAST_HAVE_NEON_BF16=1 -c {} \
	-o build/aarch64/\$$(basename {} .cpp).$$isa.o || exit 255" || exit 1; done

aarch64-env: $(VENV)/.torch  ## Python, torch and this project for 64-bit Arm, in build/aarch64-env
	AARCH64_CXX="$(AARCH64_CXX)" $(py) tests/aarch64/environment.py

test-aarch64: aarch64-env  ## a selection of the op tests for 64-bit Arm, under QEMU
	$(py) tests/aarch64/run.py $(ARGS)

clean:  ## remove what was built, but not .venv
	rm -rf build dist llama_fast.egg-info llama_fast/*.so llama_fast/_build.json
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.torch:
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(py) -m $(install) "setuptools>=77" wheel ninja numpy "$(TORCH)"
	@touch $@

$(built): $(native) | $(VENV)/.torch
	$(py) setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

$(installed): pyproject.toml setup.py | $(built)
	$(py) -m $(install) --no-build-isolation --editable '.[test]' "$(TORCH)"
	@touch $@

$(oldest)/.installed: pyproject.toml tests/build/dependencies.py | $(VENV)/.torch
	rm -rf $(oldest) && $(PYTHON) -m venv $(oldest)
	$(oldest)/bin/python -m $(install) --quiet packaging "tomli; python_version < '3.11'"
	$(oldest)/bin/python -m tests.build.dependencies > build/oldest.txt
	$(oldest)/bin/python -m $(install) --quiet --requirement build/oldest.txt "$(TORCH)"
	@touch $@

# The packages of the extra `docs` alone: the package itself would bring torch.
$(docs_env)/.installed: pyproject.toml
	test -x $(docs_env)/bin/pip || $(PYTHON) -m venv $(docs_env)
	$(docs_env)/bin/python -m $(install) --quiet $$(sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	@touch $@

$(for_demo): pyproject.toml setup.py | $(built)
	$(py) -m $(install) --no-build-isolation --editable '.[demo]' "$(TORCH)"
	@touch $@

$(VENV)/.dev: $(installed)
	$(py) -m $(install) --no-build-isolation --editable '.[dev]' "$(TORCH)"
	@touch $@
