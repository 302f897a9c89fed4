#!/usr/bin/env bash
# What only a GPU can show, from wheels alone, in under nine minutes on one card; JSON lines go to OUT as they come:
#
#     benchmarks/gpu.sh OUT
#     PYTHON=python3.12 PIP_FIND_LINKS=wheels PIP_NO_INDEX=1 benchmarks/gpu.sh OUT    # where no index can be reached
#     KECAE_GPU_SH_DEVICE=cpu SMALL=1 benchmarks/gpu.sh OUT                           # of the script itself, on a CPU
#
# A venv is made of PYTHON (python3); where torch with CUDA can be imported there, that torch is taken. WHEEL=... is a wheel
# of kecae-aug that is built already. Tests, then the exchange against the plain baseline (TF32 and halves, and compiled), the
# loader's overlap, and training pairs a second. A part that fails leaves its error in OUT, the others go on, and the script
# ends with 1.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$(dirname "$1")"
out=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")/.."
device=${KECAE_GPU_SH_DEVICE:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
has_torch() { "$1" -c "import torch; assert '$device' != 'cuda' or torch.cuda.is_available()" 2> "$work/why"; }

python=${PYTHON:-python3}
site=$(has_torch "$python" && echo --system-site-packages || true)
"$python" -m venv $site "$work/venv"
if [ -n "$site" ]; then # of a venv, its packages too
    "$python" -c 'import site; print("\n".join(site.getsitepackages()))' > "$("$work/venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
fi
python=$work/venv/bin/python
wheel=${WHEEL:-}
if [ -z "$wheel" ]; then
    "$python" -m pip wheel -q --no-deps --wheel-dir "$work/dist" .
    wheel=$(ls "$work"/dist/kecae_aug-*.whl)
fi
"$python" -m pip install -q --no-warn-conflicts "kecae-aug[train] @ file://$(realpath "$wheel")" pytest
has_torch "$python" || { cat "$work/why" >&2; exit 1; }
export PYTHONPATH=$PWD/benchmarks # else the wheel's code

failed=0
part() { # name, seconds it may take, command: one line of how it ended, after those that it wrote itself
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    [ -z "${SMALL:-}" ] || limit=$((10 * limit)) # the CPU may be busy
    timeout "$limit" "$@" > "$work/$name.log" 2>&1 || code=$? failed=1
    "$python" - "$name" "$code" $((SECONDS - start)) "$work/$name.log" >> "$out" <<'LINE'
import json, sys
name, code, seconds, log = sys.argv[1:]
said = open(log, errors="replace").read().strip().splitlines()
line = {"part": name, "exit": int(code), "seconds": int(seconds), "last": said[-1:]}
if code != "0":
    line |= {"error": "took too long" if code == "124" else "\n".join(said[-40:])}
print(json.dumps(line))
LINE
    echo "$name: exit $code after $((SECONDS - start)) s" >&2
}

size=(--preset paper) fast=(--batch-size 64 --repetitions 20) pairs=(--pairs 32 --turns 5 --each 5) epoch=(--batches 30)
tests=(-m "$([ "$device" = cuda ] && echo cuda || echo 'not slow')" -k "$device")
if [ -n "${SMALL:-}" ]; then
    size=(--preset tiny) fast=(--batch-size 4 --repetitions 1) pairs=(--pairs 2 --turns 1 --each 1) epoch=(--batches 2)
    matrix=(--matrix 128)
    tests=(-k "$device and loader_gives") # what runs on a CPU is in the fast suite
fi
to=(--device "$device" --out "$out")
part tests 110 "$python" -m pytest -o addopts= -q "${tests[@]}" tests/test_cuda.py
part throughput 80 "$python" -m kecae_bench.checks.throughput "${size[@]}" "${fast[@]}" ${matrix[@]+"${matrix[@]}"} "${to[@]}"
part overlap 60 "$python" -m kecae_bench.checks.gpu_overlap "${size[@]}" --batch-size "${fast[1]}" "${epoch[@]}" "${to[@]}"
part training 45 "$python" -m kecae_bench.checks.training_throughput "${size[@]}" "${pairs[@]}" "${to[@]}"
part training_bf16 45 "$python" -m kecae_bench.checks.training_throughput "${size[@]}" "${pairs[@]}" --precision bf16-mixed "${to[@]}"
part compiled 160 "$python" -m kecae_bench.checks.throughput --compile "${size[@]}" "${fast[@]}" ${matrix[@]+"${matrix[@]}"} "${to[@]}"
exit $failed
