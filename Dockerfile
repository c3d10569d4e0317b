# docker build -t t-elaine .            CPU; --build-arg EXTRAS=data,tpu or data,cuda13 for accelerators
# docker run --rm -v "$PWD":/work t-elaine prepare --gin_file=quickstart_data.gin
# (the extra beam needs other versions than constraints.txt holds: docs/data.md)
FROM python:3.11-slim
ARG EXTRAS=data
RUN apt-get update && apt-get install --yes --no-install-recommends git fonts-noto-cjk && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/t-elaine
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
WORKDIR /work
ENTRYPOINT ["t-elaine"]
CMD ["--help"]
