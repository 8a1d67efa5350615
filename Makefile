# `make help` lists what can be asked for. Everything sets up .venv by itself, once.

VENV ?= .venv
COLAB_VENV ?= .venv-colab
# Exact versions, or with `LOCK=` the newest that the ranges of requirements.txt allow.
LOCK = requirements.lock
COLAB_VERSIONS = tests/constraints/colab-2026-08.txt
READY = $(VENV)/.vlm-lite-ready
COLAB_READY = $(COLAB_VENV)/.vlm-lite-ready
GRADE_READY = $(VENV)-grade/.vlm-lite-ready
COLAB_GRADE_READY = $(COLAB_VENV)-grade/.vlm-lite-ready
PY = $(VENV)/bin/python
# Containers often set this, and then every kernel compiles anew what it imports: 31 s of CPU a start instead of 12.
unexport PYTHONDONTWRITEBYTECODE
# Two files of tests at a time, a core each, in the order given: notebooks first, since they take longest.
SIDE_BY_SIDE = -n 2 --dist loadfile --no-loadscope-reorder
PYTEST = VLM_LITE_PROFILE=tiny OMP_NUM_THREADS=1 $(PY) -m pytest $(SIDE_BY_SIDE)

# The first of these that starts and is a Python the course runs on; set PYTHON to choose another.
first_python = $(or $(shell for p in $(1); do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && { echo $$p; break; }; done),python3)
find_python = $(or $(PYTHON),$(call first_python,$(1)))

# CPU=plain: any x86 machine computes as one without AVX-512, AMX and bf16, so that it shows what most others will meet.
ifeq ($(origin CPU),command line)
ifneq ($(CPU),plain)
$(error CPU=$(CPU) is not known; expected CPU=plain, or nothing for the CPU as it is)
endif
export ATEN_CPU_CAPABILITY = avx2
export ONEDNN_MAX_CPU_ISA = AVX2
export MKL_ENABLE_INSTRUCTIONS = AVX2
export VLM_LITE_CPU = plain
endif

# RECORD=1 writes how long a target took into data/times.json: with it, run nothing else beside it.
timed = start=$$(date +%s); $(1) && : $(if $(RECORD),&& $(PY) tools/course.py --record-seconds $@ $$(($$(date +%s) - start)))

.PHONY: help course test check notebooks soak bench newest colab lock gif setup demo real real-parts export-test

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

course: $(READY)  ## run notebooks 00 to 10 on tiny; pages in build/course/index.html (ALL=1: companions too; CPU=plain: as without bf16)
	@$(PY) tools/course.py $(if $(ALL),--all) $(if $(RECORD),--record)

test: $(READY) $(GRADE_READY)  ## lint, unit tests, the .py/.ipynb gate, notebooks 00 to 10 and companions on smoke, in one pytest call
	@$(call timed,$(PYTEST) --nbmake --nbmake-timeout=3600 notebooks tests)

check: $(READY)  ## the fast part of the tests
	@$(call timed,$(PYTEST) -q -m "not slow and not soak" tests)

notebooks: $(READY)  ## run again and save what is stale, rewrite headers, badges and the pages' tables (FORCE=1: all)
	@$(PY) tools/notebooks.py $(if $(FORCE),--force)

soak: $(READY) $(GRADE_READY)  ## the tests that take long
	VLM_LITE_PROFILE=tiny $(PY) -m pytest -m soak --timeout=0 -rP tests

bench: $(READY)  ## time the parts on this machine; docs/bench.json and docs/benchmarks.md (PARTS="models answers")
	@$(PY) tools/bench.py $(PARTS)

gif: $(READY)  ## make docs/ask.gif, the README's picture, from what shapes-vlm answers
	@$(PY) tools/readme_gif.py

demo: $(READY)  ## build docs/demo, the page to play with: the model as ONNX and the browser's runtime (needs npm)
	@cd callers && npm install --ignore-scripts --no-package-lock --no-audit --no-fund --loglevel=error
	@$(PY) -m vlm_lite export shapes-vlm docs/demo/model
	@rm -rf docs/demo/ort && mkdir -p docs/demo/ort && cd callers/node_modules/onnxruntime-web/dist && cp ort.wasm.min.mjs \
	ort-wasm-simd-threaded.mjs $(CURDIR)/docs/demo/ort/ && gzip -9nc ort-wasm-simd-threaded.wasm \
	> $(CURDIR)/docs/demo/ort/ort-wasm-simd-threaded.wasm.gz

real:  ## real pretrained parts and photographs, proved, and notebooks 09, 10 and 04t on them, in a venv of its own (RECORD=1 SEEDS=3: its record)
	@$(MAKE) real-parts VENV=.venv-real

real-parts: $(READY)
	@$(if $(RECORD),$(PY) -m vlm_lite study photographs_real --seeds $(or $(SEEDS),1),$(PY) -u tools/real.py)
	@$(if $(RECORD),,REAL_HOME=$$($(PY) -c "from vlm_lite.files import home; print(home())") \
	$(PY) -m pytest -q tests/lessons/test_coco.py -k "any_encoder and 04t")

export-test: demo build/callers/libvlm.so  ## the exported model from JavaScript and C, and the page in a headless Chromium (CHROMIUM= names one)
	@$(PY) -m pytest -q callers

# The C caller: headers of a Debian package, the library of npm's onnxruntime-node.
HEADERS = build/callers/usr/include

$(HEADERS)/onnxruntime:
	@rm -rf build/callers && callers/headers.sh build/callers

build/callers/libvlm.so: callers/answer.c demo $(HEADERS)/onnxruntime
	@library=$$(realpath callers/node_modules/onnxruntime-node/bin/*/linux/$$(node -p process.arch)/libonnxruntime.so.1) && \
	$(CC) -O2 -Wall -Wextra -Wno-unused-function -shared -fPIC -o $@ $< -isystem $(HEADERS)/onnxruntime -isystem $(HEADERS)/stb \
	"$$library" -Wl,-rpath,"$${library%/*}" -lm

newest:  ## `make test` on the newest versions that requirements.txt allows, in a venv of their own
	@rm -f .venv-newest/.vlm-lite-ready
	@$(MAKE) test VENV=.venv-newest LOCK=

colab: $(COLAB_READY) $(COLAB_GRADE_READY)  ## the unit tests on Colab's published versions, in a venv of their own
	$(COLAB_VENV)/bin/python tools/colab_check.py $(COLAB_VERSIONS)
	VLM_LITE_PROFILE=tiny OMP_NUM_THREADS=1 $(COLAB_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) tests

# uv resolves for all Pythons of the course, one version for all where it can, and the platform that pyproject.toml names; what all lines say alike goes.
RESOLVE = uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --no-annotate --no-header --only-binary :all:
HEADER = echo "\# The exact versions of what $(1) needs: Linux, x86_64, Python 3.11 to 3.13. Made by \`make lock\`: do not edit."

lock:  ## resolve requirements.lock and requirements-grade.lock anew (needs uv: pip install uv)
	@rm -rf build/lock && mkdir -p build/lock
	@$(RESOLVE) -o build/lock/base requirements.txt
	@$(RESOLVE) -o build/lock/all -c build/lock/base --extra grade requirements.txt pyproject.toml
	@sed -i "s/ and implementation_name.*//; s/ ; python_full_version < '3.14'$$//; s/ and python_full_version < '3.14'$$//" build/lock/*
	@($(call HEADER,the course); cat build/lock/base) > build/lock/requirements.lock
	@($(call HEADER,nbgrader on top of requirements.lock); grep -vxFf build/lock/base build/lock/all) > build/lock/requirements-grade.lock
	@mv build/lock/*.lock .

setup: $(READY)  ## the environment alone, .venv

$(READY): requirements.txt pyproject.toml $(LOCK)
	@$(call find_python,python3 python3.13 python3.12 python3.11) tools/install.py $(VENV) $(if $(LOCK),,--newest)
	@touch $@

$(COLAB_READY): requirements.txt pyproject.toml $(COLAB_VERSIONS)
	@$(call find_python,python3.13 python3.12 python3) tools/install.py $(COLAB_VENV) --constraints $(COLAB_VERSIONS)
	@touch $@

# nbgrader, in an environment on top of the other: see tools/install.py.
$(GRADE_READY): $(READY) $(if $(LOCK),requirements-grade.lock)
	@$(PY) tools/install.py $(VENV)-grade --grade $(if $(LOCK),,--newest)
	@touch $@

$(COLAB_GRADE_READY): $(COLAB_READY)
	@$(COLAB_VENV)/bin/python tools/install.py $(COLAB_VENV)-grade --grade --newest
	@touch $@
