# docker build -t t-elaine .            CPU; --build-arg EXTRAS=tpu or cuda13 for accelerators
FROM python:3.11-slim
ARG EXTRAS=data
RUN apt-get update && apt-get install --yes --no-install-recommends make git fonts-noto-cjk && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/t-elaine
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
WORKDIR /work
ENTRYPOINT ["t-elaine"]
CMD ["--help"]
