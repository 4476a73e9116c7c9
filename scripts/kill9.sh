#!/usr/bin/env bash
# Kills a node with SIGKILL at random moments under load, restarts it, and counts what was lost.
#
#   scripts/kill9.sh [--times N] [--seed S] [--dir DIRECTORY] [N]
#
# One line per run. A run that finds anything wrong prints the line that repeats it. Exits
# non-zero if any run failed. SPILLWAY names the binary; by default the release build is used, and
# built if it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

times=200
seed=$((RANDOM * 32768 + RANDOM))
directory=""
while [ $# -gt 0 ]; do
    case "$1" in
        --times) times=$2; shift 2 ;;
        --seed) seed=$2; shift 2 ;;
        --dir) directory=$2; shift 2 ;;
        [0-9]*) times=$1; shift ;;
        *) sed -n '2,8p' "$0" >&2; exit 64 ;;
    esac
done

spillway=${SPILLWAY:-target/release/spillway}
if [ -z "${SPILLWAY:-}" ]; then
    cargo build --release --quiet
fi
# A copy: a build that replaces the binary must not change it under a long series of runs.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/spillway-kill9-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
cp "$spillway" "$scratch/spillway"

# What a run varies: workload, shape of the load, fill of frames.
shapes=(
    "--workload transfer --batch 1 --connections 32 --in-flight 8"
    "--workload transfer --batch 100 --connections 8 --in-flight 4"
    "--workload insert --batch 100 --connections 8 --in-flight 4"
    "--workload hot --batch 100 --connections 8 --in-flight 4"
    "--workload transfer --batch 1000 --connections 4 --in-flight 4"
    "--workload transfer --batch 10 --connections 16 --in-flight 8 --rate 50000"
    "--workload insert --batch 1 --connections 16 --in-flight 16 --ids sequential"
    "--workload ycsb-a --batch 20 --connections 8 --in-flight 4 --rows 5000"
    "--workload hot --batch 1 --connections 32 --in-flight 4"
    "--workload transfer --batch 100 --connections 8 --in-flight 2 --any-account"
    "--workload cluster31 --batch 50 --connections 8 --in-flight 4 --rows 5000"
)
common="--nodes 1 --accounts 10000 --ramp 0.2 --hold 0.6 --fall 0.2 --log-gib 1 --memory-gib 2"
if [ -n "$directory" ]; then
    common="$common --dir $directory"
fi

# number NAME FILE: a number of the result.
number() {
    sed -n "s/^  \"$1\": \([0-9.]*\),\{0,1\}$/\1/p" "$2"
}

echo "kill9: $times runs, seed $seed"
acknowledged=0 lost=0 wrong=0 failed=0
for ((run = 1; run <= times; run++)); do
    run_seed=$((seed + run))
    shape=${shapes[$((run % ${#shapes[@]}))]}
    # From the very beginning of the load to its end; the seed decides.
    moment=$(awk -v seed="$run_seed" 'BEGIN { srand(seed); rand(); printf "%.4f", rand() * 1.0 }')
    line="$shape $common --seed $run_seed --kill-after $moment"
    status=0
    rm -f "$scratch/result.json"
    # shellcheck disable=SC2086 # the line is words
    "$scratch/spillway" perf burst $line --json "$scratch/result.json" \
        >"$scratch/output" 2>&1 || status=$?
    if [ -f "$scratch/result.json" ]; then
        run_acknowledged=$(number acknowledged "$scratch/result.json")
        run_lost=$(number lost "$scratch/result.json")
        run_wrong=0
        for name in foreign damaged imbalanced; do
            run_wrong=$((run_wrong + $(number "$name" "$scratch/result.json")))
        done
        acknowledged=$((acknowledged + run_acknowledged))
        lost=$((lost + run_lost))
        wrong=$((wrong + run_wrong))
        summary="acknowledged $run_acknowledged lost $run_lost wrong $run_wrong"
    else
        summary="did not finish"
    fi
    printf '%3d/%d  kill at %s s  %s  %s\n' "$run" "$times" "$moment" \
        "$(echo "$shape" | cut -d' ' -f2,4)" "$summary"
    if [ "$status" -ne 0 ]; then
        failed=$((failed + 1))
        tail -n 25 "$scratch/output" | sed 's/^/    /'
        echo "    repeat: $spillway perf burst $line --keep"
    fi
done
echo "kill9: $times kills, $acknowledged acknowledged, $lost lost, $wrong wrong," \
    "$failed failed runs"
[ "$failed" -eq 0 ] && [ "$lost" -eq 0 ] && [ "$wrong" -eq 0 ]
