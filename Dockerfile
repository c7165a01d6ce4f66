# Both images of Rerail: `operator` and `trainer`. The agent is in neither: it comes to any image by ConfigMap.
#
#   docker build --target operator -t REGISTRY/rerail-operator:0.1.0 .
#   docker build --target trainer  -t REGISTRY/rerail-trainer:0.1.0 .
#
# BASE_IMAGE needs Python 3.11 or newer with venv and pip. Packages come pinned by hash from requirements/.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS base
# A package index of your own, and the authority it is signed by (pip reads all three; unset: PyPI).
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ENV PATH=/opt/rerail/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# The code lies outside of site-packages, so that it makes a small layer of its own above the packages.
RUN python3 -m venv /opt/rerail \
 && printf '/opt/rerail/src/operator\n/opt/rerail/src/trainer\n' \
      > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rerail.pth"

FROM base AS operator
COPY requirements/operator.txt /opt/rerail/requirements.txt
RUN pip install --require-hashes -r /opt/rerail/requirements.txt
COPY operator/ /opt/rerail/src/operator/
# The operator hands the agent to the worker pods.
COPY trainer/rerail_agent/ /opt/rerail/src/trainer/rerail_agent/
RUN python -m compileall -q /opt/rerail/src
ENV PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "rerail_operator"]

FROM base AS trainer
# Another source of torch, for example a package index with CPU builds. Its files are others than those whose
# hashes are pinned, so then only the version is held.
ARG TORCH_INDEX
COPY requirements/trainer.txt /opt/rerail/requirements.txt
RUN if [ -z "$TORCH_INDEX" ]; then \
      pip install --require-hashes -r /opt/rerail/requirements.txt; \
    else \
      torch="$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' /opt/rerail/requirements.txt)" \
      && pip install --index-url "$TORCH_INDEX" "$torch" \
      && pip install "numpy>=1.26" "pydantic>=2.11,<3" "pyyaml>=6"; \
    fi
# What prepare, plot and object storage need: a small layer of its own above torch.
COPY requirements/extras.txt /opt/rerail/extras.txt
RUN pip install --require-hashes --no-deps -r /opt/rerail/extras.txt
# parallel.compile (on in the presets for GPUs) needs a C compiler and Python's headers, which python:*-slim has;
# a base of Debian's own Python needs python3-dev besides. Empty: an image without.
ARG COMPILER="gcc libc6-dev"
RUN if [ -n "$COMPILER" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $COMPILER && rm -rf /var/lib/apt/lists/*; \
    fi
# PyTorch asks for a user name and a home of its own.
RUN echo 'rerail:x:1000:1000:rerail:/home/rerail:/bin/sh' >> /etc/passwd \
 && echo 'rerail:x:1000:' >> /etc/group \
 && mkdir -p /home/rerail && chown 1000:1000 /home/rerail
COPY operator/rerail_api/ /opt/rerail/src/operator/rerail_api/
COPY trainer/ /opt/rerail/src/trainer/
RUN python -m compileall -q /opt/rerail/src
ENV HOME=/home/rerail
USER 1000:1000
WORKDIR /home/rerail
CMD ["python", "-m", "rerail_trainer", "--help"]
