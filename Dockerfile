# An image in which `codyra` is installed. CPU: docker build -t codyra .
# CUDA, with the compiler that DeepSpeed's operations need at first use:
#   docker build -t codyra:cuda --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Base and torch have to be of one CUDA, else DeepSpeed does not compile; there is no torch 2.13.0 for CUDA 12.8.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/codyra/bin:$PATH
RUN python3 -m venv /opt/codyra
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url ${TORCH_INDEX} torch==2.13.0
COPY setup.py pyproject.toml README.md LICENSE ./
COPY codyra_llm codyra_llm
COPY tasks tasks
COPY configs configs
COPY ds_configs ds_configs
COPY scripts scripts
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
WORKDIR /work
ENTRYPOINT ["codyra"]
