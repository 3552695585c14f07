#!/bin/sh
# Run gpu_check.py in a folder that `make gpu-bundle` made: sh bench/gpu_check.sh OUT.json
set -e
python3 -m pip install --quiet --no-index --no-deps --upgrade --target site wheels/*.whl
PYTHONPATH=site:. exec python3 bench/gpu_check.py "$@"
