#!/usr/bin/env bash
# Train on one machine, or on each of several, under torchrun.
#
#   launch/torchrun.sh recipes/small/pretraining.toml --engine.pipeline 1 --engine.expert-parallel 1
#   NODES=4 HEAD=node0:29500 launch/torchrun.sh recipes/base/pretraining.toml     # the same line on every machine
#   NODES=3:4 HEAD=node0:29500 launch/torchrun.sh recipes/base/pretraining.toml   # goes on with three if one is lost
#
# Further arguments go to vl2 train. If a rank dies or hangs, all are ended and started again from the last checkpoint,
# RESTARTS times at most; with a range of NODES on those that are left. Where the recipe has a pipeline, divided layers or
# divided experts, engine.pipeline times engine.tensor_parallel, and times engine.expert_parallel, must divide any number
# of ranks that may be left.
set -euo pipefail

RECIPE=${1:?give a recipe}
shift
NODES=${NODES:-1}
RESTARTS=${RESTARTS:-3}
if [ -z "${GPUS:-}" ]; then
  GPUS=$( (command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus | wc -l) || echo 0)
  if [ "$GPUS" -eq 0 ]; then GPUS=1; fi
fi

if [ "$NODES" = 1 ]; then
  rendezvous=(--standalone)
else
  rendezvous=(--rdzv-backend c10d --rdzv-endpoint "${HEAD:?HEAD=HOST:PORT of the first machine}" --rdzv-id "${JOB:-vl2}")
fi

# A store of its own for every start: in the one that torchrun keeps, ranks would find the addresses of dead ones.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# --resume begins at the first step where there is no checkpoint yet, so the same line starts and restarts.
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$RESTARTS" "${rendezvous[@]}" \
  --no-python vl2 train "$RECIPE" --resume "$@"
