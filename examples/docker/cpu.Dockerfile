# An image for machines without a GPU. From the root of the repository:
#   docker build -f examples/docker/cpu.Dockerfile -t llama_fast:cpu .
#   docker run --rm llama_fast:cpu
#   docker run --rm -it -v "$PWD/models:/models:ro" llama_fast:cpu chat /models/smollm2
# One library holds the kernels of every instruction set, so the image runs on any processor of its
# architecture, whichever machine built it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH="torch==2.13.0"
ARG EXTRAS="serve,train,eval"
# Debian's own versions: they change with the base image only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH="/opt/llama_fast/bin:$PATH"
# PyPI's torch for x86-64 brings gigabytes of CUDA libraries; this index has one without.
# The newest of the other packages: their lower bounds are those of pyproject.toml.
# hadolint ignore=DL3013
RUN python -m venv /opt/llama_fast \
    && pip install --extra-index-url https://download.pytorch.org/whl/cpu \
       "setuptools>=77" "ninja>=1.11" "numpy>=1.26" "${TORCH}"
WORKDIR /source
COPY . .
# LLAMA_FAST_BUILD=1: an image without the kernels is an error.
# hadolint ignore=DL3013
RUN LLAMA_FAST_BUILD=1 pip install --no-build-isolation ".[${EXTRAS}]" \
    && pip uninstall --yes ninja \
    && llama-fast info

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/llama_fast /opt/llama_fast
ENV PATH="/opt/llama_fast/bin:$PATH"
RUN useradd --create-home --uid 10001 user
USER 10001
WORKDIR /home/user
ENTRYPOINT ["llama-fast"]
CMD ["info"]
