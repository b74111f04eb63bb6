# Every target sets itself up; only Python 3.11 or 3.12, make and a package index are needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CHECKPOINT := export/embedded/checkpoint
EXPORT := out/export
VARIANTS := $(patsubst $(CHECKPOINT)-%,%,$(wildcard $(CHECKPOINT)-*))
MODELS := --model base=$(EXPORT) $(foreach variant,$(VARIANTS),--model $(variant)=out/$(variant))

.PHONY: setup demo test test-slow check serve bench bench-full soak export engines-full clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
		--editable '.[client,export,triton,openvino,int8,plans,bench,peers,tracing,dev]'
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
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: setup
	$(RUN) -m pytest -m "slow and not gpu" -o faulthandler_timeout=3600

check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

RESULTS := out/bench
FULL := out/full

# Every kind of measurement on the embedded checkpoint, in some twelve minutes, and a page of them all: out/report.html.
bench: export
	$(RUN) -m bench offline --model $(EXPORT) --rows 1,2,4,8,16 --sizes 128 --repeats 3 --json $(RESULTS)/offline.json
	$(RUN) -m bench host --json $(RESULTS)/host.json
	$(RUN) -m bench quality --task all --cases 25 $(MODELS) --json $(RESULTS)/quality.json
	$(RUN) -m bench online --model $(EXPORT) --steps 4,20,50 --rate 3,6 --requests 200 --json $(RESULTS)/online.json
	$(RUN) -m bench online --model $(EXPORT) --fake --steps 4,20,50 --samplers euler,dpmpp_2m,ddim --face stream \
		--preview-interval 5 --rate 4,8 --requests 200 --json $(RESULTS)/online-fake.json
	$(RUN) -m bench latency --model $(EXPORT) --repeats 15 --json $(RESULTS)/latency.json
	$(RUN) -m bench harness --model $(EXPORT) --seconds 5 --json $(RESULTS)/harness.json
	$(RUN) -m bench goodput --dry-run --requests 300 --seeds 1 --json $(RESULTS)/goodput.json
	$(RUN) -m bench capacity --curve $(RESULTS)/offline.json --batchers in_flight --rate 5,10,20 --slo 3 --seeds 1 --json $(RESULTS)/capacity.json
	$(RUN) -m bench mlperf --scenario Offline --model $(EXPORT) --scale 0.01 --json $(RESULTS)/mlperf.json
	$(RUN) -m bench peers --model $(EXPORT) --checkpoint $(CHECKPOINT) --repeats 2 \
		--peer diffusers_fp32 --peer openvino_genai --peer triton_serial --peer triton_static --json $(RESULTS)/peers.json
	$(RUN) -m bench report $(RESULTS)/*.json --html out/report.html

# The same machine at full size: Stable Diffusion 2.1 with random weights at 512 x 512, without a GPU: most of an hour.
bench-full: setup
	test -e $(FULL)/checkpoint/model_index.json || \
		$(RUN) -m export --random-weights sd21 --out $(FULL)/checkpoint
	$(RUN) -m export $(FULL)/checkpoint --out $(FULL)/fp32 --resolution 512
	mkdir -p $(RESULTS)/full
	$(RUN) -m bench offline --model $(FULL)/fp32 --rows 1,2,4 --repeats 2 --json $(RESULTS)/full/offline.json
	$(RUN) -m bench picture --model $(FULL)/fp32 --repeats 2 --json $(RESULTS)/full/picture.json
	$(RUN) -m bench peers --what unet --model $(FULL)/fp32 --checkpoint $(FULL)/checkpoint \
		--json $(RESULTS)/full/unet.json
	$(RUN) -m bench peers --model $(FULL)/fp32 --checkpoint $(FULL)/checkpoint --setting single --steps 4 \
		--repeats 3 --json $(RESULTS)/full/peers.json
	$(RUN) -m bench report $(RESULTS)/full/*.json --html out/report-full.html

# Some minutes; exit code 0 only if nothing was lost or leaked.
soak: export
	$(RUN) -m bench soak --model $(EXPORT) --json out/soak.json

# Stable Diffusion 2.1 at full size with random weights, to plans for Ada and Blackwell GPUs: some minutes, 9 GB of disk.
engines-full: setup
	test -e $(FULL)/checkpoint/model_index.json || \
		$(RUN) -m export --random-weights sd21 --out $(FULL)/checkpoint
	$(RUN) -m export $(FULL)/checkpoint --out $(FULL)/sd21 --precision fp16 --resolution 512 --resolution 768
	$(RUN) -m engines build $(FULL)/sd21 --compiler tensorrt_rtx --resolution 512 --resolution 768 \
		--rows 1:2:8 --rows unet=1:8:16 --compute-capability 8.9 --compute-capability 12.0 --json out/engines-full.json

clean:
	rm -rf $(VENV) out build *.egg-info
