# One image for the API, the workers, the set-up and the stand-ins; docker-compose.yml says which it is to be.
# Its versions have no defaults here: they stand in .production.env, from where compose hands them in.
ARG PYTHON_VERSION

FROM docker.io/library/python:${PYTHON_VERSION} AS build
ARG UV_VERSION
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore uv==${UV_VERSION}
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/opt/scopemarchiver \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /source
# The dependencies change less often than we do, and are a layer of their own.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-default-groups --no-install-project
COPY . .
RUN uv sync --locked --no-default-groups --no-editable

FROM docker.io/library/python:${PYTHON_VERSION}
ARG VERSION
LABEL org.opencontainers.image.title="ScopeMArchiver" \
      org.opencontainers.image.description="Moves scientific datasets from a landing zone to tape and back" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
# The number is said, so that the owner of a mounted file can be it; the folder is where the stand-ins keep their state.
RUN groupadd --gid 10001 archiver \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin archiver \
    && install --directory --owner=10001 --group=10001 /app /var/lib/stand-in
COPY --from=build /opt/scopemarchiver /opt/scopemarchiver
ENV PATH=/opt/scopemarchiver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
# Of the API, which is what runs unless another command is given; compose has the others' checks.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as http; http.urlopen('http://127.0.0.1:8000/health/livez', timeout=4)"]
CMD ["scopemarchiver", "api"]
