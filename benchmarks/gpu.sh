#!/usr/bin/env bash
# Measure on a host with an NVIDIA GPU and no network, in parts of at most 10 minutes each.
#
#   benchmarks/gpu.sh install PARTS   unpack the offline bundle: PARTS/part.* (a split tar.xz), PARTS/*.whl
#   benchmarks/gpu.sh tests           the GPU tests: deploy, stream, 1 -> 2 replicas, memory freed
#   benchmarks/gpu.sh serving         our endpoint, bare vLLM and vllm-router with Llama-3.1-8B's shape
#                                     at 1 to 512 streams (STREAMS, PEERS, FRONTEND, NAME of the result)
#   benchmarks/gpu.sh start           parts of a start, ours and bare vLLM's, with warm caches: run it after serving (REPEATS)
#   benchmarks/gpu.sh claims          notebook 04: vLLM and every transformers baseline
#   benchmarks/gpu.sh users           notebook 05: concurrent users within the SLO
#                                     (both accept notebook parameters: -p NAME VALUE;
#                                     tests and layouts accept pytest options: -k EXPRESSION)
#   benchmarks/gpu.sh limit           decode and prefill compared with the limits of the GPU
#   benchmarks/gpu.sh energy          watt-hours per million tokens, and the cost ledger compared with nvidia-smi
#   benchmarks/gpu.sh layouts         two GPUs: tensor-, pipeline-, data- and expert-parallel engines
#   benchmarks/gpu.sh fleet [SIDE]    a fleet with a replica per GPU: a day of DAY_S (330) seconds, SIDE fixed or autoscaled
#   benchmarks/gpu.sh pd [SIDE]       long prompts: SIDE split (prefill and decode apart) or colocated
#   benchmarks/gpu.sh routers         routing policies on conversations, with a replica per GPU
#   benchmarks/gpu.sh scale [SIDE]    1 to N replicas: SIDE ours, data_parallel (of vLLM) or router (vllm-router)
#                                     (these four need 2 or 4 GPUs; without SIDE all sides in turn, for which one part is
#                                     too short; each side updates the comparison in RESULTS)
#   benchmarks/gpu.sh all             every part for one GPU
#
# Each part writes RESULTS/NAME.json (default: benchmarks/results/gpu). SITE is the bundle's folder.
# On a host with several GPUs, CUDA_VISIBLE_DEVICES=0 uses one, so parts can run at the same time.
# ACCELERATOR=cpu is a dry run of the same parts on a CPU with the embedded model, into build/gpu-dry.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?usage: benchmarks/gpu.sh install|tests|serving|start|claims|users|limit|energy|layouts|fleet|pd|routers|scale|all}
export SITE=${SITE:-/tmp/llm-workbench-site} ACCELERATOR=${ACCELERATOR:-gpu}
[ "$ACCELERATOR" = gpu ] && default=benchmarks/results/gpu || default=build/gpu-dry
RESULTS=${RESULTS:-$default}
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-$PWD/.venv/bin/python} || PYTHON=${PYTHON:-python3}
export PYTHONPATH="$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
mkdir -p "$RESULTS"

memory() {  # MiB in use on the visible GPUs; nothing on a CPU
  [ "$ACCELERATOR" = cpu ] || nvidia-smi ${CUDA_VISIBLE_DEVICES:+--id "$CUDA_VISIBLE_DEVICES"} --query-gpu=memory.used --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum }'
}

last_line() {  # show the output of a benchmark, and save its last line, the JSON object
  tee "$RESULTS/$1.log"
  tail -n 1 "$RESULTS/$1.log" > "$RESULTS/$1.json"
  rm "$RESULTS/$1.log"
}

install() {
  local parts=${1:?usage: benchmarks/gpu.sh install PARTS}
  mkdir -p "$SITE"
  cat "$parts"/part.* | xz -dc -T0 | tar x -C "$SITE"
  local wheels=("$parts"/*.whl)
  if [ -e "${wheels[0]}" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" "${wheels[@]}"
  fi
  # Otherwise the first start of each engine would compile its imports.
  "$PYTHON" -m compileall -q -j 0 "$SITE" > /dev/null || true
  "$PYTHON" -c 'import ray, torch, vllm; print("ray", ray.__version__, "vllm", vllm.__version__, "torch", torch.__version__)'
}

pytest_into() {  # NAME FILE [OPTION ...]: run the tests of a file, and save the result of each
  local name=$1 report="$RESULTS/$1.xml" code=0
  [ "$ACCELERATOR" = cpu ] && return 0  # they need a GPU
  "$PYTHON" -m pytest -v -m gpu --durations=0 -o junit_family=xunit1 --junitxml="$report" "${@:2}" || code=$?
  "$PYTHON" - "$name" "$report" "$RESULTS/$name.json" "$(memory)" <<'PY'
import json, sys
import xml.etree.ElementTree as xml
from workbench.runs.provenance import hardware, versions
name, report, target, memory = sys.argv[1:]
cases = [
    {
        "test": case.get("name"),
        "seconds": float(case.get("time")),
        "outcome": next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed"),
    }
    | {item.get("name"): item.get("value") for item in case.iter("property")}
    for case in xml.parse(report).iter("testcase")
]
result = {"name": f"gpu_{name}", "tests": cases, "memory_mib_after": int(memory)}
json.dump(result | {"machine": hardware(), "versions": versions()}, open(target, "w"), indent=1)
PY
  rm -f "$report"
  return $code
}

tests() { pytest_into tests tests/gpu/test_gpu.py "$@"; }
layouts() { pytest_into layouts tests/gpu/test_layouts.py "$@"; }

serving() {
  if [ "$ACCELERATOR" = cpu ]; then
    "$PYTHON" benchmarks/serving_path.py --repeats 1 --streams 1 16 | last_line serving_path
    return
  fi
  local shape; shape=$("$PYTHON" benchmarks/_shape.py "$SITE/Llama-3.1-8B-shape")
  "$PYTHON" benchmarks/serving_path.py --accelerator gpu --source "$shape" --load-format dummy \
    --streams ${STREAMS:-1 32 128 256:256/128 512:64/128} --peers ${PEERS:-router} --frontend "${FRONTEND:-python}" \
    --kv-cache-gib "${KV_CACHE_GIB:-13}" --repeats "${REPEATS:-3}" | last_line "serving_path${NAME:-}"
}

start() {
  local options; mapfile -t options < <(model 1024)
  "$PYTHON" benchmarks/cold_start.py "${options[@]}" --repeats "${REPEATS:-1}" --no-warm-up | last_line cold_start
}

limit() {
  "$PYTHON" benchmarks/physical_limit.py --accelerator "$ACCELERATOR" | last_line physical_limit
}

energy() {
  "$PYTHON" benchmarks/energy.py --accelerator "$ACCELERATOR" | last_line energy
}

notebook() {  # NUMBER NAME [-p NAME VALUE ...]: run a notebook with its profile, and save its claims
  local id; id=$ACCELERATOR-$(date -u +%Y%m%dT%H%M%SZ)-$2
  local given=(-p port 0)
  if [ "$ACCELERATOR" = gpu ]; then
    given+=(-p source "$("$PYTHON" benchmarks/_shape.py "$SITE/Llama-3.1-8B-shape")")
    given+=(-p model_fields '{max_model_len: 2048, num_gpus: 0.5, engine_kwargs: {load_format: dummy}}')
  fi
  "$PYTHON" -m workbench run "$1" --profile "$ACCELERATOR" "${given[@]}" "${@:3}" --run-id "$id" --runs "${RUNS:-runs}"
  "$PYTHON" -m workbench keep "${RUNS:-runs}/$id" --to "$RESULTS"
}

cards() {  # the number of visible GPUs; 2 replicas on a CPU
  [ "$ACCELERATOR" = cpu ] && echo 2 && return
  nvidia-smi ${CUDA_VISIBLE_DEVICES:+--id "$CUDA_VISIBLE_DEVICES"} --list-gpus | wc -l
}

model() {  # LENGTH: the options of a benchmark that select the model, one per line
  [ "$ACCELERATOR" = cpu ] && printf '%s\n' --max-model-len 1024 && return
  printf '%s\n' --accelerator gpu --load-format dummy --max-model-len "$1" \
    --source "$("$PYTHON" benchmarks/_shape.py "$SITE/Llama-3.1-8B-shape")"
}

sides() {  # NAME SCRIPT SIDES [OPTION ...]: measure each side, and compare all that have been measured
  local side name=$1 script=$2 given=$3
  for side in $given; do
    "$PYTHON" "benchmarks/$script.py" "$side" "${@:4}" | last_line "${name}_$side"
  done
  "$PYTHON" "benchmarks/$script.py" verdict "$RESULTS/${name}"_*.json | last_line "$name"
}

fleet() {
  local options; mapfile -t options < <(model 2048)
  options+=(--replicas "$(cards)")
  if [ "$ACCELERATOR" = gpu ]; then
    options+=(--rate "${RATE:-16}" --target 32 --seconds "${DAY_S:-330}")
  else
    options+=(--seconds "${DAY_S:-60}")
  fi
  sides fleet fleet "${1:-autoscaled fixed}" "${options[@]}"
}

pd() {
  local options; mapfile -t options < <(model 8192)
  options+=(--replicas "$(cards)")
  if [ "$ACCELERATOR" = gpu ]; then
    options+=(--connector "${CONNECTOR:-nixl}" --input 4096 --output 128 --rates 2 4 8)
  else
    options+=(--seconds 10)
  fi
  sides pd disaggregated "${1:-colocated split}" "${options[@]}"
}

routers() {
  local options; mapfile -t options < <(model 8192)
  options+=(--replicas "$(cards)")
  if [ "$ACCELERATOR" = gpu ]; then
    options+=(--conversations 192 --turns 6 --input 512 --output 64 --users 16)
  fi
  "$PYTHON" benchmarks/routers.py "${options[@]}" | last_line routers
}

scale() {
  local most options given; mapfile -t options < <(model 2048)
  most=$(cards)
  if [ "$ACCELERATOR" = gpu ]; then
    given="ours data_parallel router"
    options+=(--streams 64 --repeats 2)
    [ "$most" -gt 2 ] && options+=(--replicas 1 2 "$most") || options+=(--replicas 1 "$most")
  else
    given=ours  # vLLM's data parallelism and vllm-router are for GPUs here
  fi
  sides scale scale_out "${1:-$given}" "${options[@]}"
}

claims() { notebook 04 claims "$@"; }
users() { notebook 05 users "$@"; }

case $part in
  install) install "${2:-}" ;;
  all) for name in tests serving start claims users limit energy; do echo "== $name"; "$0" "$name"; done ;;
  tests | serving | start | claims | users | limit | energy | layouts | fleet | pd | routers | scale)
    "$part" "${@:2}"; echo "memory after: $(memory) MiB" ;;
  *) echo "PART must be one of install, tests, serving, start, claims, users, limit, energy, layouts, fleet, pd, routers, scale, all, got '$part'"; exit 2 ;;
esac
