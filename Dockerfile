# No container engine runs where this was written: each command was run by hand, in an empty folder with what .dockerignore
# lets through, on Debian 12 with its Python 3.11; the last one as user 10001, with no more in its environment than PATH and
# the service's settings.
FROM python:3.11-slim AS build
ARG REQUIREMENTS=requirements/service.txt
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
RUN python -m venv --without-pip /app
RUN pip --python /app/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r "$REQUIREMENTS"
COPY src src
RUN pip --python /app/bin/python install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN pip uninstall --yes pip setuptools wheel
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH
# Where a module for AUTH_BACKEND is found: COPY my_auth.py ./
WORKDIR /srv
USER 10001
EXPOSE 8000
CMD ["uvicorn", "todo_api.main:app", "--host", "0.0.0.0", "--timeout-graceful-shutdown", "25", "--timeout-keep-alive", "75"]
