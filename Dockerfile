# syntax=docker/dockerfile:1
# The server and the page: docker build -t anygpt .
# For an NVIDIA GPU (PyTorch's own build from PyPI, which brings CUDA's libraries):
#   docker build -t anygpt:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH_INDEX= .
# scripts/check_container.sh runs the same steps without Docker.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# An image of CUDA has no Python of its own; Debian's and Ubuntu's need venv besides.
# hadolint ignore=DL3008
RUN command -v python3.11 || { \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    }

RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin anygpt
WORKDIR /opt/anygpt
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 GRADIO_ANALYTICS_ENABLED=False

# What is installed, first: a change of code alone doesn't install it all again.
COPY setup.py setup.cfg pyproject.toml README.md LICENSE requirements.txt ./
COPY scripts/make_venv.sh scripts/
COPY anygpt/__init__.py anygpt/
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN TORCH_INDEX="${TORCH_INDEX}" bash scripts/make_venv.sh /opt/venv serve,web

COPY . .
ENV PATH=/opt/venv/bin:${PATH}
USER 10001
WORKDIR /home/anygpt
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["anygpt"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
