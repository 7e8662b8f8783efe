# One image for training, serving and MLflow's server, CPU only. Which of them it does is the command: see
# docker-compose.yml.
#
#   docker build -t recsys .
#
# On x86-64, plain pip brings torch's CUDA build, some gigabytes larger. Name an index with CPU wheels to avoid it:
#
#   docker build -t recsys --build-arg PIP_EXTRA_INDEX_URL=... .
FROM python:3.12.12-slim-bookworm

# LightGBM's wheel needs the OpenMP runtime, which slim images leave out.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# Dependencies first: they change less often than the code, and this layer is the large one. pip reads the argument
# from the environment; empty means that it is not set.
ARG PIP_EXTRA_INDEX_URL=
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/dependencies.txt \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r /tmp/dependencies.txt \
    && rm /tmp/dependencies.txt

# Editable, so that the page of the service and feature_repo stay where the code looks for them.
COPY README.md LICENSE ./
COPY recsys recsys
COPY pipelines pipelines
COPY serving serving
COPY feature_repo feature_repo
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e .

# The code belongs to root and cannot be changed by who runs it; only the home and MLflow's
# folder of artifacts can be written.
ENV RECSYS_HOME=/var/lib/recsys PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 recsys && install -d -o recsys -g recsys /var/lib/recsys /var/lib/mlflow
USER recsys
VOLUME /var/lib/recsys

EXPOSE 8000
ENTRYPOINT ["recsys"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
