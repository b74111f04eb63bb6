# Serving on NVIDIA's Triton image. Build the plans first, on the GPU that will serve:
#   docker compose run --rm plans build /models/sd21 --compiler tensorrt
#   docker compose up aquatint
# The image has Triton's own backends, tritonserver with its security fixes, CUDA and TensorRT. The tag follows
# docs.nvidia.com/deeplearning/triton-inference-server/release-notes; older ones than 26.07 miss fixes that we rely on.
ARG TRITON_TAG=26.07-py3

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS serve

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engines engines
COPY export export
COPY server server
COPY bench bench
COPY model_repository model_repository
# Both wheels of ONNX Runtime hold the same module, so the one for the CPU has to go before the one for GPUs comes.
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt --editable '.[client,tracing,openvino]' \
    && python3 -m pip uninstall --yes onnxruntime \
    && python3 -m pip install --no-cache-dir 'onnxruntime-gpu>=1.27'

# What providers compile, and numba, goes into the only place on disk that is written to.
ENV XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin aquatint \
    && install --directory --owner=aquatint --group=aquatint /cache
USER 10001:10001
VOLUME ["/models", "/cache"]
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=3 CMD ["python3", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python3", "-m", "server", "launch", "--address", "0.0.0.0"]
CMD ["--model", "/models/current"]

# The compiler of the same TensorRT that the image's backend loads plans with, whose version NVIDIA's images name.
FROM serve AS plans
USER root
RUN python3 -m pip install --no-cache-dir 'polygraphy>=0.53' 'filelock>=3.20' 'tqdm>=4.66' "tensorrt==${TRT_VERSION%%+*}"
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "engines"]
CMD ["--help"]

# Without `--target`, the image that serves.
FROM serve
