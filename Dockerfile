# redisagg with its command line; deploy/README.md says how to put your own code into it.
#
#   docker build -t redisagg .
#   docker run redisagg stats --redis redis://host:6379/0 -n emails
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# For a mirror, or for wheels in the build context.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG EXTRAS=cli,hiredis,metrics,schedule
WORKDIR /build
COPY . .
RUN python -m venv /opt/redisagg \
    && /opt/redisagg/bin/python -m pip install --no-cache-dir --no-compile ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/redisagg /opt/redisagg
ENV PATH=/opt/redisagg/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["redisagg"]
CMD ["--help"]
