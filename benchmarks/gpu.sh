#!/usr/bin/env bash
# Test and time everything that needs a GPU, in at most eight minutes on one H200:
#
#   bash benchmarks/gpu.sh --out DIR [--data in1k-sample] [--device cuda] [--small] [--python python3]
#
# Each part has a time limit of its own, and one that fails hides no other; DIR/summary.md names them
# all, DIR/NAME.log is what each said. What the machine lacks comes along in .cache/gpu, see
# benchmarks/README.md. `--device cpu --small` runs the same parts without a GPU: it tries the script.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out='' data='' device=cuda small='' python=python3
while [ $# -gt 0 ]; do
  case $1 in
    --out | --data | --device | --python) printf -v "${1#--}" %s "${2:?$1: expected a value}"; shift 2 ;;
    --small) small=1; shift ;;
    *) echo "gpu.sh: unknown option $1; expected --out, --data, --device, --python or --small" >&2; exit 2 ;;
  esac
done
[ -n "$out" ] || { echo "gpu.sh: --out is missing; expected a folder for the results" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ -z "$data" ] || data=$(cd "$data" && pwd) || exit 2

site=.cache/gpu/site
if compgen -G '.cache/gpu/wheels/*.whl' >/dev/null && [ ! -d "$site" ]; then
  # A wheel is a zip file; the machine may have no pip.
  for wheel in .cache/gpu/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site" || exit 2; done
fi
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/cli:$PWD/$site${PYTHONPATH:+:$PYTHONPATH}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$out/cache/triton} TORCHINDUCTOR_CACHE_DIR=$out/cache/inductor

# A processor is slow, and others may use it.
[ "$device" = cpu ] && slack=6 || slack=1
part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * slack)) start=$SECONDS status; shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  case $status in
    0) status=done ;;
    124 | 137) status="stopped after $limit s" ;;
    *) status="failed ($status): $(grep -v '^ *$' "$out/$name.log" | tail -1 | cut -c1-160)" ;;
  esac
  echo "| $name | $((SECONDS - start)) | ${status//|/ } |" | tee -a "$out/summary.md"
}

{ echo "# On $device"; echo; echo '| part | s | result |'; echo '| --- | ---: | --- |'; } >"$out/summary.md"

# Every dependency with its version; what is missing, and how to bring it.
part machine 20 "$python" - "$device" <<'PYTHON'
import importlib.metadata as metadata, pathlib, re, sys, tomllib
wanted = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["dependencies"]
missing = []
for line in [*wanted, "pytest>=8.3", "hypothesis>=6.110"]:
    name = re.match(r"[\w-]+", line)[0]
    try:
        print(line, "found", metadata.version(name))
    except metadata.PackageNotFoundError:
        missing.append(name)
import torch
print(sys.version, torch.cuda.get_device_name() if sys.argv[1] != "cpu" else "cpu")
if missing:
    sys.exit(f"missing: {' '.join(missing)}; carry their wheels in .cache/gpu/wheels (benchmarks/README.md)")
PYTHON

if [ -n "$small" ]; then tests=(--collect-only) kernels=(--small) step=(--batch 2 --rounds 1)
  size=32 steps=2 batch=8 workers=0
else tests=(-v) kernels=() step=(--rounds 15)
  size=224 steps=100 batch=128 workers=12
fi
measure=("$python" benchmarks/kernels.py --device "$device" "${kernels[@]}")
part tests 130 "$python" -m pytest -W default -p no:cacheprovider -m gpu "${tests[@]}" tests/kernels/test_gpu.py tests/loading/test_loader.py
part labels 90 "${measure[@]}" --only labels --out "$out/labels"
part views 60 "${measure[@]}" --only views pair loss --out "$out/views"
[ "$device" = cpu ] || part tiles 45 "${measure[@]}" --only tiles --out "$out/tiles"
part step 55 "$python" benchmarks/step.py --device "$device" "${step[@]}" --out "$out/step"
if [ -n "$data" ]; then
  export SAMPLE=$data PYTHONPATH=$out:$PYTHONPATH
  "$python" -c 'import sys; sys.path.insert(0, "benchmarks"); import making_runs; print(making_runs.TEACHER)' >"$out/nearest.py"
  part distill 60 "$python" -m hellofmt distill "$data" --device "$device" --ipc 1 --view-size "$size" \
    --teacher nearest:nearest --teacher-mean 0 0 0 --teacher-std 1 1 1 --base seeded --rank 4 --head-start stored \
    --steps "$steps" --batch-size "$batch" --candidates 1 --select rded --workers "$workers" --no-precision-table \
    --json --force -o "$out/sample.hello"
  part train 20 "$python" -m hellofmt train "$out/sample.hello" --device "$device" --student resnet10w16 \
    --eval "$data" --steps "$steps" --batch-size "$batch" --json
fi
! grep -q '| failed\|| stopped' "$out/summary.md"
