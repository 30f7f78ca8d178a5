# Images to train in and to look at runs; compose.yaml says how they are run.
#
#   cpu          python main.py on CPUs; what is built where no target is named
#   cuda         the same for NVIDIA GPUs
#   tensorboard  TensorBoard over a folder of runs
FROM python:3.12-slim AS python
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /esper
RUN useradd --uid 1000 --create-home esper
COPY constraints-py312.txt ./

FROM python AS tensorboard
RUN pip install --constraint constraints-py312.txt tensorboard
USER 1000
EXPOSE 6006
ENTRYPOINT ["tensorboard", "--bind_all", "--logdir=runs"]

FROM python AS base
COPY pyproject.toml README.md LICENSE ./
COPY esper_jax esper_jax
# What others may write is not run: kernels of the package, say.
RUN chmod -R go-w esper_jax && \
  pip install --constraint constraints-py312.txt --editable '.[images,redis]'
COPY configs configs
COPY main.py ./
# For compiled programs and data sets: like /tmp, for whoever runs the image.
ENV XDG_CACHE_HOME=/cache
RUN install --directory --mode=1777 /cache && \
  install --directory --owner=esper runs
USER 1000
ENTRYPOINT ["python", "main.py"]
CMD ["--help"]

FROM base AS cuda
USER 0
RUN pip install --constraint constraints-py312.txt --editable '.[cuda12]'
USER 1000

FROM base AS cpu
