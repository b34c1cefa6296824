# syntax=docker/dockerfile:1
# The project with its tested versions, as an image for nodes of a Ray cluster and for any single machine.
#
#     docker build --build-arg VARIANT=cpu -t d2ls:cpu .
#     docker build --build-arg VARIANT=gpu -t d2ls:gpu .
#     docker run --rm -it --shm-size 2g d2ls:cpu                               the demo
#     docker run --rm --gpus all --shm-size 8g -v $PWD/data:/opt/d2ls/data d2ls:gpu python -m pipeline.train loveda
#
# VARIANT names a build stage below; both end in the same last stage. The GPU variant takes the CUDA libraries from the
# wheels that constraints.txt pins, so its base needs no CUDA toolkit, and the machine only NVIDIA's driver.
ARG VARIANT=cpu
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0
# git: runs are logged with their commit. wget, procps: KubeRay's probes and `ray stop`.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 ray
WORKDIR /opt/d2ls
COPY constraints.txt pyproject.toml README.md LICENSE ./

FROM base AS cpu
# With PyTorch's index of CPU builds (--build-arg CPU_INDEX=..., see its installation page) the same versions without the
# four gigabytes of CUDA libraries, which have no use here.
ARG CPU_INDEX=""
RUN if [ -z "${CPU_INDEX}" ]; then \
        cp constraints.txt /tmp/constraints.txt && pip install --constraint /tmp/constraints.txt torch torchvision; \
    else \
        grep --invert-match --extended-regexp "^(nvidia-|cuda-|triton)" constraints.txt > /tmp/constraints.txt \
        && torch=$(sed -n "s/^torch==//p" constraints.txt) \
        && vision=$(sed -n "s/^torchvision==//p" constraints.txt) \
        && pip install --index-url "${CPU_INDEX}" "torch==${torch}+cpu" "torchvision==${vision}+cpu"; \
    fi

FROM base AS gpu
RUN cp constraints.txt /tmp/constraints.txt \
    && pip install --constraint /tmp/constraints.txt torch torchvision
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${VARIANT} AS final
# Dependencies first: a change of the code leaves these gigabytes as they are.
RUN mkdir d2ls sharding pipeline \
    && touch d2ls/__init__.py sharding/__init__.py pipeline/__init__.py \
    && pip install --constraint /tmp/constraints.txt --editable ".[search]" boto3
COPY d2ls d2ls
COPY sharding sharding
COPY pipeline pipeline
COPY recipes recipes
COPY clusters clusters
RUN python -m compileall -q d2ls sharding pipeline \
    && python clusters/check_node.py \
    && chown -R ray:ray /opt/d2ls
USER ray
CMD ["python", "-m", "pipeline.sweep"]
