#!/bin/bash
# Everything that a GPU can say, from a plain checkout: bash bench/gpu.sh OUTDIR [SECTION ...]
#
#   parity    kernels and engine against plain torch, three precisions; boxes over 200 frames   110 s
#   fps       frames per second, engines in turns, both protocols                                70 s
#   compiled  the same with torch.compile max-autotune, which is slow to build                  150 s
#   targets   1 to 32 targets in a frame pair                                                    45 s
#   kernels   every launch against its floor and the vendor's library                            50 s
#   losses    distillation terms of a training step, fused and eager, time and memory           40 s
#   first     first frames with a cold and a warm kernel cache; memory                           45 s
#   sanitize  compute-sanitizer, memcheck and racecheck, on a reduced frame                      45 s
#   profile   the profiler's table of a frame                                                    20 s
#   tune      (only by name) measure tiles, write kernels/tiles.json                            300 s
#
# A section that fails or runs out of its time does not stop the others; the exit code is the number that did.
# Results are JSON files in OUTDIR, at most eight, with device, versions, commit and date. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then
    sed -n '2,16p' "$0" >&2
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

sanitize() {
    local tool=${SANITIZER:-compute-sanitizer} code=0 report=$out/sanitize.json lines=()
    command -v "$tool" >/dev/null || tool=/usr/local/cuda/bin/compute-sanitizer
    "$python" bench/gpu.py frame --json /dev/null # compiles the kernels, so that only frames run under the tool
    for check in memcheck racecheck; do
        # Graph replay is opaque to the tool on some drivers; the first frame of each buffer runs launch by launch.
        if "$tool" --tool "$check" --error-exitcode 9 --kernel-name-exclude kns=at:: \
            "$python" bench/gpu.py frame --json /dev/null >"$out/sanitize.$check.log" 2>&1; then
            lines+=("\"$check\": \"clean\"")
        else
            code=1
            lines+=("\"$check\": \"failed, exit code $?\"")
            tail -n 25 "$out/sanitize.$check.log"
        fi
        rm -f "$out/sanitize.$check.log"
    done
    (IFS=,; echo "{${lines[*]}}") >"$report"
    cat "$report"
    return $code
}

parity() {
    local code=0
    "$python" -m pytest tests/kernels tests/engines/test_triton.py tests/engines/test_upload.py -q -x \
        -p no:cacheprovider --deselect tests/kernels/test_compile.py -m "not slow" || code=$?
    "$python" bench/gpu.py agreement --json "$out/agreement.json" || code=$?
    return $code
}

sections=("$@")
[ ${#sections[@]} = 0 ] && sections=(parity fps targets kernels losses first sanitize profile compiled)
export -f sanitize parity
export out python
for name in "${sections[@]}"; do
    case $name in
    parity) section parity 110 bash -c parity ;;
    fps)
        section fps 70 "$python" bench/fps.py --engine reference:float32 reference:bfloat16 triton --iterations 400 \
            --warmup 50 --protocol both --json "$out/fps.json"
        ;;
    compiled)
        section compiled 150 "$python" bench/fps.py --engine compiled:bfloat16 triton --compile-mode max-autotune \
            --iterations 400 --warmup 30 --protocol both --json "$out/compiled.json"
        ;;
    targets) section targets 45 "$python" bench/gpu.py targets --json "$out/targets.json" ;;
    kernels) section kernels 50 "$python" bench/kernels.py --json "$out/kernels.json" ;;
    losses) section losses 40 "$python" bench/losses.py --json "$out/losses.json" ;;
    first) section first 45 "$python" bench/gpu.py first --json "$out/first.json" ;;
    sanitize) section sanitize 45 bash -c sanitize ;;
    profile) section profile 20 "$python" bench/gpu.py profile --json "$out/profile.json" ;;
    tune) section tune 310 "$python" bench/tune.py --targets 1 32 --seconds 290 ;;
    *)
        echo "unknown section '$name'; known: parity fps compiled targets kernels losses first sanitize profile tune" >&2
        exit 2
        ;;
    esac
done
echo "== done in $SECONDS s, $failed failed; results in $out"
exit "$failed"
