#!/usr/bin/env bash
# A day with a GPU in one command: what works on the card, and how fast, in at most 30 minutes.
#
#   benchmarks/gpu.sh OUT                        # one card
#   INPUTS=data/nano benchmarks/gpu.sh OUT       # with the built-in model's recipe; experiments/nano/README.md
#   PARTS="parity decode" benchmarks/gpu.sh OUT  # these parts alone; the figures of others in OUT are kept
#   DEVICE=cpu SMOKE=1 benchmarks/gpu.sh OUT     # in small, to see whether it runs
#
#   parity        logits on the card beside the CPU's
#   products      the Triton kernels: whether their products are right, and how fast they read weights
#   decode        decoding with CUDA graphs and without, in bfloat16, int8 and int4, at several batches
#   server        the server's engine with several requests at once
#   ranks         decoding with the experts divided among the cards; skipped where there is one
#   bench         vl2 bench: encoder, prefill, decoding, first token
#   transformers  the same beside transformers' layers
#   train         MFU of a training step of tiny, at several layouts of one card
#   nano          the first stages of the built-in model's recipe, until its time is over
#
# Each part has its own time limit, and one that fails costs no other. OUT gets table.md, plot.png, and for each part
# NAME.json and NAME.log. The exit code is 1 if a part failed.
set -u
out=${1:?"say where the results go: benchmarks/gpu.sh OUT"}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
device=${DEVICE:-cuda}
parts=${PARTS:-parity products decode server ranks bench transformers train nano}
smoke=${SMOKE:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here" || exit 1
export PYTHONPATH="$here/src:$here${PYTHONPATH:+:$PYTHONPATH}"

day() { "$python" benchmarks/gpu_day.py "$@" --out "$out" --device "$device" ${smoke:+--smoke --dtype float32}; }

part_parity() { day parity; }
part_products() { day products; }
part_decode() { day decode; }
part_server() { day server; }
part_train() { day train; }
part_bench() { bench bench; }
part_transformers() { bench transformers --against transformers_parts; }

part_ranks() {
    "$python" -m torch.distributed.run --standalone --nproc-per-node "$cards" benchmarks/gpu_ranks.py --out "$out" \
        --device "$device" ${smoke:+--smoke --dtype float32} && day ranks
}

bench() {
    local name=$1
    shift
    local model=random:tiny
    [ -n "$smoke" ] && model=nano
    "$python" -m vl2 bench --model "$model" --device "$device" ${smoke:+--quick --only encode} "$@" \
        --out "$out/$name.raw.json" && day "$name"
}

part_nano() {
    # The run is stopped by its time limit, so what counts are the steps that it left.
    timeout "${NANO_SECONDS:-270}" "$python" -m experiments.nano.run experiments/nano/recipe.toml --inputs "$INPUTS" \
        --to "$out/nano" --budget 2 --ranks 1 --device "$device" ${smoke:+--compute float32}
    day nano
}

# Seconds; together 30 minutes.
declare -A limit=([parity]=90 [products]=90 [decode]=300 [server]=60 [ranks]=120 [bench]=270 [transformers]=270 [train]=300 [nano]=300)

# Run a part in a process group of its own, so that nothing of it goes on after its time.
run_part() {
    export -f day bench "part_$1"
    export out python device smoke cards INPUTS NANO_SECONDS
    timeout --kill-after 5 "${LIMIT:-${limit[$1]}}" bash -c "part_$1" >"$out/$1.log" 2>&1
}

# Two processes stand in for cards where a small run is on the CPU.
cards=$([ "$device" = cpu ] && echo "${smoke:+2}" || "$python" -c 'import torch; print(torch.cuda.device_count())')
touch "$out/states.txt"
for part in $parts; do
    if [ -z "${limit[$part]:-}" ]; then
        echo "gpu.sh: PARTS must be of ${!limit[*]}, got $part" >&2
        exit 2
    fi
    rm -f "$out/$part.json"
    if [ "$part" = nano ] && [ -z "${INPUTS:-}" ]; then
        state=skipped
        echo "set INPUTS to the folder of python -m experiments.nano.inputs" >"$out/nano.log"
    elif [ "$part" = ranks ] && [ "${cards:-1}" -lt 2 ]; then
        state=skipped
        echo "there is one device, and the part needs two" >"$out/ranks.log"
    else
        INPUTS=${INPUTS:-} NANO_SECONDS=${NANO_SECONDS:-270}
        echo "gpu.sh: $part, at most ${LIMIT:-${limit[$part]}} s" >&2
        run_part "$part"
        code=$?
        state=ok
        [ $code -ne 0 ] && state="failed with code $code"
        [ $code -eq 124 ] && state="out of time"
        [ "$state" = ok ] || { echo "gpu.sh: $part: $state; the end of $out/$part.log:" >&2; tail -n 3 "$out/$part.log" >&2; }
    fi
    # The part's line replaces the one of an earlier run.
    { grep -v "^$part	" "$out/states.txt"; printf '%s\t%s\n' "$part" "$state"; } >"$out/states.new"
    mv "$out/states.new" "$out/states.txt"
done
day table
code=$?
cat "$out/table.md"
exit $code
