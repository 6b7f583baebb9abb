# The service's image, and KubeRay's for head and workers. See "Container" in README.md.
#
#   CUDA:  docker build -t fastervlm-video .
#   CPU:   docker build -t fastervlm-video:cpu --build-arg TORCH_INDEX=<address of PyTorch's CPU-only package index> .
#
# Everything that is written at run time lies below /tmp and /var/lib/fastervlm, so the root may be read-only.

# Any Debian with python3.11, its venv module and pip. Both ends use it: the environment holds links to its Python.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- An environment without pip; nothing is compiled, so no stage has a compiler. ----
FROM ${BASE_IMAGE} AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1
RUN python3.11 -m venv --without-pip /opt/venv

# ---- The locked packages, each checked against its hash. ----
FROM environment AS packages
COPY requirements.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3.11 -m pip --python /opt/venv/bin/python install --quiet \
      --require-hashes --only-binary :all: -r /build/requirements.lock \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

# ---- torch and what only it needs, into a tree of its own. Which build is right depends on the machine. ----
FROM packages AS torch
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    python3.11 -m pip --python /opt/venv/bin/python install --quiet --no-warn-script-location \
      --only-binary :all: --root /torch \
      ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch==${TORCH_VERSION}" \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /torch \
      -x /torch/testing/_internal/ /torch/opt/venv/lib

# ---- This project, likewise. ----
FROM packages AS code
COPY LICENSE README.md pyproject.toml /build/
COPY fastervlm_video /build/fastervlm_video
COPY services /build/services
RUN --mount=type=cache,target=/root/.cache/pip \
    python3.11 -m pip --python /opt/venv/bin/python install --quiet --no-warn-script-location --root /code \
      --no-deps --no-build-isolation --no-index /build \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /code /code/opt/venv/lib

# ---- What is run. ----
FROM ${BASE_IMAGE}
# tini: reaps what Ray leaves behind, and passes signals on. wget: KubeRay's probes call it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 10001 fastervlm \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/fastervlm --no-create-home --shell /usr/sbin/nologin fastervlm \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/fastervlm \
 # a login shell forgets PATH, and KubeRay can be told to use one
 && for name in fastervlm-video ray serve; do ln -s "/opt/venv/bin/${name}" "/usr/local/bin/${name}"; done

COPY --from=packages /opt/venv /opt/venv
COPY --from=torch /torch/opt/venv /opt/venv
COPY --from=code /code/opt/venv /opt/venv

# The runtime folder is one level below the mount, because it has to be its user's alone, and a mount may not be.
# Ray would take a third of the memory for its object store, and gives Serve's proxy five seconds to start, which is
# too little where a container's share of the processor is small.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/fastervlm \
    HF_HOME=/var/lib/fastervlm/huggingface \
    XDG_CACHE_HOME=/var/lib/fastervlm/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/fastervlm/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/fastervlm/cache/triton \
    MPLCONFIGDIR=/tmp/matplotlib \
    RAY_TMPDIR=/tmp \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=900000000 \
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=120 \
    FASTERVLM_HOST=0.0.0.0 \
    FASTERVLM_PORT=8000 \
    FASTERVLM_RUNTIME_DIR=/var/lib/fastervlm/run

USER 10001:10001
WORKDIR /var/lib/fastervlm
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=3m --retries=3 CMD ["python", "-I", "-c", \
  "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['FASTERVLM_PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--"]
CMD ["fastervlm-video", "serve"]

ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="fastervlm-video" \
      org.opencontainers.image.description="Video question answering on Ray Serve with FasterVLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
