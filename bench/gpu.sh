#!/bin/bash
# Everything that a GPU can say, from a plain checkout, in three parts: bash bench/gpu.sh PART OUTDIR [SECTION ...]
# See bench/gpu.py. PYTHON names the interpreter.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ -x "$here/.venv/bin/python" ] && [ -z "${PYTHON:-}" ] && python=$here/.venv/bin/python
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$here/bench/gpu.py" "$@"
