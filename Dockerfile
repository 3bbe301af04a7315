# brewctl's roles and tools, without the sandbox: docs/deployment.md says how to run it.
# Python's version is the one that the tests run on.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY brewctl brewctl
RUN pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels '.[librdkafka,metrics,otel,webhook]'
# Without pip, and compiled, because the last stage writes nothing there.
RUN python -m venv --without-pip /opt/brewctl \
 && pip --python /opt/brewctl/bin/python install --no-cache-dir --no-index --find-links /wheels 'brewctl[librdkafka,metrics,otel,webhook]' \
 && /opt/brewctl/bin/python -m compileall -q /opt/brewctl

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="brewctl" org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/brewctl/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# The files belong to root, and only root may write them.
COPY --from=build /opt/brewctl /opt/brewctl
# brewctl imports a downstream of your own from the working directory.
WORKDIR /app
# A number, so that Kubernetes can check that the user is not root.
USER 10001:10001
# The first SIGTERM drains the role; a second one ends it at once.
STOPSIGNAL SIGTERM
# If BREW_HTTP is set: whether the role's loops run (/livez). Kubernetes uses its own probes.
HEALTHCHECK --interval=30s --timeout=6s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request; at = os.environ.get('BREW_HTTP', ''); at and urllib.request.urlopen('http://' + at.replace('0.0.0.0:', '127.0.0.1:') + '/livez', timeout=5)"]
ENTRYPOINT ["brewctl"]
CMD ["--help"]
