# Every target sets itself up; only Python 3.11 or 3.12, make and a package index are needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CHECKPOINT := export/embedded/checkpoint
EXPORT := out/export
VARIANTS := $(patsubst $(CHECKPOINT)-%,%,$(wildcard $(CHECKPOINT)-*))
MODELS := --model base=$(EXPORT) $(foreach variant,$(VARIANTS),--model $(variant)=out/$(variant))

.PHONY: setup demo test test-slow check serve bench soak export engines-full clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
		--editable '.[client,export,triton,openvino,int8,plans,bench,tracing,dev]'
	touch $@

export: setup
	$(RUN) -m export $(CHECKPOINT) --out $(EXPORT) --resolution 128 --resolution 192
	for variant in $(VARIANTS); do \
		$(RUN) -m export $(CHECKPOINT)-$$variant --out out/$$variant --resolution 128 --resolution 192 \
			$$(test $$variant != upscaler || echo --resolution 512) --reuse $(EXPORT) || exit 1; \
	done

demo: export
	$(RUN) -m bench demo $(MODELS) --out out

serve: export
	$(RUN) -m server launch $(MODELS)

test: setup
	$(RUN) -m pytest -m "not slow and not gpu"

test-slow: setup
	$(RUN) -m pytest -m "slow and not gpu" -o faulthandler_timeout=3600

check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: export
	$(RUN) -m bench quality --task all $(MODELS) --json out/quality.json
	$(RUN) -m bench samplers --model $(EXPORT) --json out/samplers.json
	$(RUN) -m bench host --json out/host.json
	$(RUN) -m bench placement --model $(EXPORT) --json out/placement.json
	$(RUN) -m bench latency --model $(EXPORT) --json out/latency.json
	$(RUN) -m bench online --model $(EXPORT) --fake --rate 7 --duration 60 --steps 4,20,50 \
		--samplers euler,dpmpp_2m,ddim --face both --preview-interval 5 --json out/online.json

# Some minutes; exit code 0 only if nothing was lost or leaked.
soak: export
	$(RUN) -m bench soak --model $(EXPORT) --json out/soak.json

# Stable Diffusion 2.1 at full size with random weights, to plans for Ada and Blackwell GPUs: some minutes, 9 GB of disk.
FULL := out/full
engines-full: setup
	test -e $(FULL)/checkpoint/model_index.json || \
		$(RUN) -m export --random-weights sd21 --out $(FULL)/checkpoint
	$(RUN) -m export $(FULL)/checkpoint --out $(FULL)/sd21 --precision fp16 --resolution 512 --resolution 768
	$(RUN) -m engines build $(FULL)/sd21 --compiler tensorrt_rtx --resolution 512 --resolution 768 \
		--rows 1:2:8 --rows unet=1:8:16 --compute-capability 8.9 --compute-capability 12.0 --json out/engines-full.json

clean:
	rm -rf $(VENV) out build *.egg-info
