# One image for each stage but train, and one for the pipeline tools:
#   docker build -f images/cpu.Dockerfile --build-arg PACKAGE=pack -t stagecoach-pack .
#   docker build -f images/cpu.Dockerfile --build-arg PACKAGE=pipeline --build-arg SOURCE=workflows --build-arg MODULE=stagecoach_workflows -t stagecoach-pipeline .
# A network that needs its own certificates gives them to the build alone: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# --- locked wheels: big, and the same until a lock changes ------------------------------------------------------------
FROM ${BASE_IMAGE} AS dependencies
SHELL ["/bin/sh", "-euc"]
# The builder and its pip are thrown away; what it installs is checked against hashes.
# hadolint ignore=DL3008,DL3009
RUN command -v pip >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends python3-pip; }
RUN python3 -m venv --without-pip /opt/venv \
    && echo /opt/stagecoach > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/stagecoach.pth"
ARG PACKAGE
COPY images/requirements/${PACKAGE}.txt /tmp/requirements.txt
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes -r /tmp/requirements.txt \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

# --- the code of this project: a few hundred kilobytes, all that changes from day to day --------------------------------
FROM dependencies AS project
COPY images/requirements/build.txt /tmp/build.txt
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip /opt/build \
    && pip --python /opt/build/bin/python install --no-cache-dir --no-deps --require-hashes -r /tmp/build.txt
ARG PACKAGE
ARG SOURCE=stages/${PACKAGE}
ARG MODULE=stagecoach_${PACKAGE}
COPY shared /src/shared
COPY ${SOURCE} /src/package
COPY LICENSE /opt/stagecoach/LICENSE
RUN pip --python /opt/build/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation --no-index --target /opt/stagecoach /src/shared /src/package \
    && find /opt/stagecoach -name direct_url.json -delete \
    && mkdir -p /opt/stagecoach/bin \
    && printf '#!/opt/venv/bin/python\nfrom runpy import run_module\n\nrun_module("%s", run_name="__main__", alter_sys=True)\n' "${MODULE}" > /opt/stagecoach/bin/stage \
    && chmod 755 /opt/stagecoach/bin/stage \
    && sed -i '1s|^#!.*|#!/opt/venv/bin/python|' /opt/stagecoach/bin/* \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/stagecoach

# --- what runs: no compiler, no pip, no shell needed ---------------------------------------------------------------------
FROM ${BASE_IMAGE}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=project /opt/stagecoach /opt/stagecoach
ENV PATH=/opt/stagecoach/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface
ARG PACKAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ENV STAGECOACH_GIT_REVISION=${REVISION}
LABEL org.opencontainers.image.title="stagecoach-${PACKAGE}" \
      org.opencontainers.image.description="The ${PACKAGE} image of the Stagecoach fine-tuning pipeline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# A number, so that Kubernetes can check runAsNonRoot without reading /etc/passwd.
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/opt/stagecoach/bin/stage"]
