# An image for machines with NVIDIA GPUs (A100, H100, B200 and later of their kind). It needs no GPU to
# be built. From the root of the repository:
#   docker build -f examples/docker/cuda.Dockerfile -t llama_fast:cuda .
#   docker run --rm --gpus all llama_fast:cuda
# For one kind of GPU alone, which compiles in a third of the time:
#   docker build -f examples/docker/cuda.Dockerfile --build-arg ARCHS=90a -t llama_fast:h100 .
ARG CUDA=13.0.1
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build
ARG TORCH="torch==2.13.0"
ARG EXTRAS="serve,train,eval"
ARG ARCHS="80;90a;100"
# Ubuntu's own versions: they change with the base image only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH="/opt/llama_fast/bin:$PATH"
# The newest of the other packages: their lower bounds are those of pyproject.toml.
# hadolint ignore=DL3013
RUN python3 -m venv /opt/llama_fast \
    && pip install "setuptools>=77" "ninja>=1.11" "numpy>=1.26" "${TORCH}"
WORKDIR /source
COPY . .
# LLAMA_FAST_BUILD=1: an image without the kernels is an error.
# hadolint ignore=DL3013
RUN LLAMA_FAST_BUILD=1 LLAMA_FAST_CUDA=1 LLAMA_FAST_CUDA_ARCHS="${ARCHS}" \
    pip install --no-build-isolation ".[${EXTRAS}]" \
    && pip uninstall --yes ninja \
    && llama-fast info

# torch brings the CUDA libraries that it needs.
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU}
# Triton compiles a launcher in C for each kernel when it first runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 user
COPY --from=build /opt/llama_fast /opt/llama_fast
ENV PATH="/opt/llama_fast/bin:$PATH"
USER 10001
WORKDIR /home/user
ENTRYPOINT ["llama-fast"]
CMD ["info"]
