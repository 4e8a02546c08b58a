#!/bin/bash
# Everything that a GPU can say, from a plain checkout: bash bench/gpu.sh OUTDIR [SECTION ...]
#
#   parity    kernels and engine against plain torch, three precisions; the authors' track       150 s
#   agreement boxes of every precision against the float32 reference over 200 frames             35 s
#   fps       frames per second, engines in turns, all protocols                                 60 s
#   compiled  the same with torch.compile max-autotune, which is slow to build                  110 s
#   targets   1 to 32 targets in a frame pair                                                    40 s
#   kernels   every launch against its floor and the vendor's library                            40 s
#   first     first frames with a cold and a warm kernel cache; memory                           45 s
#   sanitize  compute-sanitizer, memcheck and racecheck, on a reduced frame                      45 s
#   profile   the profiler's table of a frame                                                    12 s
#   losses    (only by name) distillation terms of a training step, fused and eager               40 s
#   tune      (only by name) measure tiles, write kernels/tiles.json                            310 s
#
# A section that fails or runs out of its time does not stop the others; the exit code is the number that did.
# Results are JSON files in OUTDIR, at most eight, with device, versions, commit and date. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then
    sed -n '2,17p' "$0" >&2
    exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

section() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@"
    code=$?
    [ $code = 124 ] && echo "$name ran out of its $limit seconds"
    [ $code != 0 ] && failed=$((failed + 1)) && echo "$name failed with exit code $code"
    echo "== $name took $((SECONDS - start)) s"
}

record() { # KEY VALUE: into checks.json
    "$python" - "$out/checks.json" "$@" <<'END'
import json, pathlib, sys
sys.path.insert(0, "bench")
from common import machine
path, key, value = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
found = json.loads(path.read_text()) if path.exists() else {"machine": machine("cuda"), "checks": {}}
found["checks"][key] = value
path.write_text(json.dumps(found, indent=2) + "\n")
END
}

sanitize() {
    local tool=${SANITIZER:-compute-sanitizer} code=0 got log
    command -v "$tool" >/dev/null || tool=/usr/local/cuda/bin/compute-sanitizer
    log=$(mktemp)
    "$python" bench/gpu.py frame --json /dev/null # compiles the kernels, so that only frames run under the tool
    for check in memcheck racecheck; do
        "$tool" --tool "$check" --error-exitcode 9 "$python" bench/gpu.py frame --json /dev/null >"$log" 2>&1
        got=$?
        tail -n 25 "$log"
        if [ $got = 0 ]; then
            record "$check" clean
        elif grep -q "Device not supported\|No such file" "$log"; then
            record "$check" "not available on this machine"
        else
            code=1
            record "$check" "failed, exit code $got"
        fi
    done
    rm -f "$log"
    return $code
}

parity() {
    local code=0 many=() log
    if ! "$python" -c "import pytest, pytest_timeout, pytest_benchmark"; then
        echo "parity needs pytest, pytest-timeout and pytest-benchmark"
        return 1
    fi
    log=$(mktemp)
    "$python" -c "import xdist" 2>/dev/null && many=(-n 8) # most of the time is compiling
    "$python" -m pytest tests/kernels tests/engines/test_triton.py tests/engines/test_upload.py -q "${many[@]}" \
        -p no:cacheprovider --deselect tests/kernels/test_compile.py -m "not slow" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    record parity "$(tail -n 1 "$log")"
    "$python" -m pytest tests/engines/test_triton.py -q -p no:cacheprovider -k test_the_authors_track -m "" 2>&1 |
        tee "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || code=1
    record "the authors' track" "$(tail -n 1 "$log")"
    rm -f "$log"
    return "$code"
}

sections=("$@")
[ ${#sections[@]} = 0 ] && sections=(parity agreement fps targets kernels first sanitize profile compiled)
export -f record sanitize parity
export out python
for name in "${sections[@]}"; do
    case $name in
    parity) section parity 150 bash -c parity ;;
    agreement) section agreement 35 "$python" bench/gpu.py agreement --json "$out/agreement.json" ;;
    fps)
        section fps 60 "$python" bench/fps.py --engine reference:float32 reference:bfloat16 triton --iterations 400 \
            --warmup 50 --protocol all --json "$out/fps.json"
        ;;
    compiled)
        section compiled 110 "$python" bench/fps.py --engine compiled:bfloat16 triton --compile-mode max-autotune \
            --iterations 400 --warmup 30 --protocol all --json "$out/compiled.json"
        ;;
    targets) section targets 40 "$python" bench/gpu.py targets --json "$out/targets.json" ;;
    kernels) section kernels 40 "$python" bench/kernels.py --json "$out/kernels.json" ;;
    first) section first 45 "$python" bench/gpu.py first --json "$out/first.json" ;;
    sanitize) section sanitize 45 bash -c sanitize ;;
    profile) section profile 12 "$python" bench/gpu.py profile --json "$out/profile.json" ;;
    losses) section losses 40 "$python" bench/losses.py --json "$out/losses.json" ;;
    tune) section tune 310 "$python" bench/tune.py --targets 1 32 --seconds 290 ;;
    *)
        echo "unknown section '$name'; known: parity agreement fps compiled targets kernels first sanitize profile losses tune" >&2
        exit 2
        ;;
    esac
done
echo "== done in $SECONDS s, $failed failed; results in $out"
exit "$failed"
