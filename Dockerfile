# Migrate with `todo-api migrate`, then serve. docs/deploy.md says how to add an authentication backend.
FROM python:3.11-slim AS build
ARG REQUIREMENTS=requirements/service.txt
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
RUN python -m venv --without-pip /app
RUN pip --python /app/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r "$REQUIREMENTS"
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements/build.txt
COPY src src
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels .
RUN pip --python /app/bin/python install --no-cache-dir --no-deps wheels/*.whl

FROM python:3.11-slim
RUN pip uninstall --yes pip setuptools wheel
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH
# The working directory, where modules are imported from.
WORKDIR /srv
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "from http.client import *; c = HTTPConnection('127.0.0.1', 8000); c.request('GET', '/health/live'); exit(c.getresponse().status != 200)"]
CMD ["uvicorn", "todo_api.asgi:app", "--http", "todo_api.uvicorn_http:Protocol", "--host", "0.0.0.0", "--timeout-graceful-shutdown", "25", "--timeout-keep-alive", "75"]
