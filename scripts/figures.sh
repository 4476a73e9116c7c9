#!/usr/bin/env bash
# Takes the figures of one node and of a cluster of three: every figure several times, interleaved,
# so that a slow minute of the machine hits all of them; prints median, lowest, highest, and the
# target.
#
#   scripts/figures.sh [--rounds N] [--hold SECONDS] [--dir DIRECTORY] [--only PATTERN]
#
# If redis-server is installed, SET of 100 bytes with appendfsync always is measured in the same
# rounds on the same disk, with the same connections and pipeline. SPILLWAY names the binary; by
# default the release build is used.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=5 hold=5 directory="" only=.
while [ $# -gt 0 ]; do
    case "$1" in
        --rounds) rounds=$2; shift 2 ;;
        --hold) hold=$2; shift 2 ;;
        --dir) directory=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        *) sed -n '2,10p' "$0" >&2; exit 64 ;;
    esac
done
spillway=${SPILLWAY:-target/release/spillway}
if [ -z "${SPILLWAY:-}" ]; then
    cargo build --release --quiet
fi
scratch=$(mktemp -d "${directory:-${TMPDIR:-/tmp}}/spillway-figures-XXXXXX")
redis_process=""
cleanup() {
    if [ -n "$redis_process" ]; then
        kill "$redis_process" 2>/dev/null || true
        wait "$redis_process" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap cleanup EXIT
cp "$spillway" "$scratch/spillway"
failed=0

# json POINTER FILE: a number of the result, such as committed_tps or log.bytes_per_txn.
json() {
    awk -v want="$1" '
        /^ *"[^"]*": *\{/ { split($0, part, "\""); depth++; path[depth] = part[2]; next }
        /^ *\},?$/ { depth--; next }
        /^ *"[^"]*": / {
            split($0, part, "\""); name = part[2]
            for (at = depth; at > 0; at--) name = path[at] "." name
            if (name == want) {
                value = $0; sub(/^[^:]*: */, "", value); sub(/,$/, "", value); print value; exit
            }
        }' "$2"
}

# burst NAME ARGUMENTS...: one run with $nodes nodes; its result becomes $scratch/NAME.json.
nodes=1
burst() {
    local name=$1
    shift
    rm -f "$scratch/$name.json"
    if ! "$scratch/spillway" perf burst --nodes "$nodes" "$@" --ramp 1 --hold "$hold" --fall 1 \
        --dir "$scratch" --json "$scratch/$name.json" >"$scratch/output" 2>&1; then
        failed=$((failed + 1))
        echo "  $name FAILED: perf burst $*"
        tail -n 12 "$scratch/output" | sed 's/^/    /'
    fi
    [ -f "$scratch/$name.json" ]
}

# take FIGURE VALUE: adds a value to a figure.
take() {
    if [ -n "$2" ] && [ "$2" != null ]; then
        echo "$2" >>"$scratch/values.$1"
    fi
}

# window_ratio FILE: the 99th percentile of latency while a node was held up, to that before.
window_ratio() {
    awk '
        /^ *"windows": \[/ { in_windows = 1 }
        in_windows && /^ *"name": / { split($0, part, "\""); name = part[4] }
        in_windows && /^ *"p99": / {
            value = $0; sub(/^[^:]*: */, "", value); sub(/,$/, "", value); p99 = value + 0
            found[++count] = p99
        }
        in_windows && /^ *"name": / { names[++named] = name }
        in_windows && /^  \]/ { in_windows = 0 }
        END {
            for (at = 1; at <= count; at++) by[names[at]] = found[at]
            worse = by["follower paused"] + by["follower'"'"'s disk slowed"]
            if (by["before"] > 0 && worse > 0) printf "%.2f", worse / by["before"]
        }' "$1"
}

# redis ROUND CONNECTIONS PIPELINE: SET of 100 bytes, every write on disk before its answer.
redis() {
    local connections=$1 pipeline=$2 home=$scratch/redis port count rate
    mkdir -p "$home"
    port=$((20000 + RANDOM % 20000))
    cat >"$home/redis.conf" <<CONF
bind 127.0.0.1
port $port
dir $home
appendonly yes
appendfsync always
save ""
auto-aof-rewrite-percentage 0
daemonize no
logfile $home/log
CONF
    local pin_server=() pin_client=()
    if [ "$(nproc)" -ge 2 ] && command -v taskset >/dev/null; then
        pin_server=(taskset -c 0)
        pin_client=(taskset -c 1)
    fi
    "${pin_server[@]}" redis-server "$home/redis.conf" >/dev/null 2>&1 &
    redis_process=$!
    for _ in $(seq 100); do
        redis-cli -p "$port" ping >/dev/null 2>&1 && break
        sleep 0.05
    done
    # About as many as it does in the time of a hold phase.
    count=$((pipeline >= 64 ? 300000 : pipeline >= 16 ? 240000 : 65000))
    count=$(awk -v rate="$count" -v hold="$hold" 'BEGIN { printf "%d", rate * hold }')
    rate=$("${pin_client[@]}" redis-benchmark -p "$port" -t set -d 100 -r 1000000 \
        -c "$connections" -P "$pipeline" -n "$count" --csv 2>/dev/null |
        awk -F'"' '$2 == "SET" { print $4 }')
    kill "$redis_process"
    wait "$redis_process" 2>/dev/null || true
    redis_process=""
    rm -rf "$home"
    echo "$rate"
}

wanted() {
    [[ $1 =~ $only ]]
}

has_redis=0
if command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null; then
    has_redis=1
else
    echo "redis is not installed (apt-get install redis-server): no comparison"
fi
echo "figures: $rounds rounds of ${hold} s, $(nproc) CPUs, Linux $(uname -r)"
for ((round = 1; round <= rounds; round++)); do
    echo "round $round"
    if wanted transfer-1000 &&
        burst transfer-1000 --workload transfer --batch 1000 --connections 8 --in-flight 2; then
        result=$scratch/transfer-1000.json
        take transfer-1000 "$(json committed_tps "$result")"
        take transfer-1000-p50 "$(json latency_us.p50 "$result")"
        take transfer-1000-node-ns "$(json cpu_ns_per_txn.leader "$result")"
        take replay "$(json replay.records_per_s "$result")"
    fi
    if wanted insert-1000 &&
        burst insert-1000 --workload insert --batch 1000 --connections 8 --in-flight 2; then
        result=$scratch/insert-1000.json
        take insert-1000 "$(json committed_tps "$result")"
        take insert-log-ratio "$(json log.bytes_per_payload_byte "$result")"
        rows=$(json memory.rows "$result") bytes=$(json memory.bytes "$result")
        if [ "${rows:-null}" != null ] && [ "$rows" -gt 0 ]; then
            # The row's own bytes: a key of 8, a value of 100.
            take insert-overhead "$(awk -v r="$rows" -v b="$bytes" \
                'BEGIN { printf "%.1f", b / r - 108 }')"
        fi
    fi
    if wanted hot-1000 &&
        burst hot-1000 --workload hot --batch 1000 --connections 8 --in-flight 2; then
        take hot-1000 "$(json committed_tps "$scratch/hot-1000.json")"
    fi
    for pipeline in 1 16 64; do
        name=transfer-1-64x$pipeline
        if wanted "$name"; then
            ours="" theirs=""
            if burst "$name" --workload transfer --batch 1 --connections 64 \
                --in-flight "$pipeline"; then
                ours=$(json committed_tps "$scratch/$name.json")
                take "$name" "$ours"
            fi
            if [ "$has_redis" -eq 1 ]; then
                theirs=$(redis 64 "$pipeline")
                take "redis-64x$pipeline" "$theirs"
            fi
            if [ -n "$ours" ] && [ -n "$theirs" ]; then
                take "ratio-64x$pipeline" "$(awk -v a="$ours" -v b="$theirs" \
                    'BEGIN { printf "%.2f", a / b }')"
            fi
        fi
    done
    nodes=3
    if wanted cluster-transfer-1000 &&
        burst cluster-transfer-1000 --workload transfer --batch 1000 --connections 8 \
            --in-flight 2; then
        result=$scratch/cluster-transfer-1000.json
        take cluster-transfer-1000 "$(json committed_tps "$result")"
        take cluster-leader-ns "$(json cpu_ns_per_txn.leader "$result")"
        take cluster-follower-ns "$(json cpu_ns_per_txn.follower "$result")"
        take cluster-p50 "$(json latency_us.p50 "$result")"
        take cluster-p99 "$(json latency_us.p99 "$result")"
    fi
    if wanted cluster-transfer-1-64x16 &&
        burst cluster-transfer-1-64x16 --workload transfer --batch 1 --connections 64 \
            --in-flight 16; then
        take cluster-transfer-1-64x16 \
            "$(json committed_tps "$scratch/cluster-transfer-1-64x16.json")"
    fi
    # One follower stands still for the second half of the hold phase.
    if wanted cluster-paused; then
        half=$(awk -v hold="$hold" 'BEGIN { print hold / 2 }')
        from=$(awk -v half="$half" 'BEGIN { print 1 + half }')
        if burst cluster-paused --workload transfer --batch 10 --connections 16 --in-flight 4 \
            --rate 40000 --pause-follower "$half@$from"; then
            take cluster-paused "$(window_ratio "$scratch/cluster-paused.json")"
        fi
    fi
    # The same with its log disk a hundred times slower.
    if [ "$(id -u)" -eq 0 ] && wanted cluster-slowed; then
        half=$(awk -v hold="$hold" 'BEGIN { print hold / 2 }')
        from=$(awk -v half="$half" 'BEGIN { print 1 + half }')
        if burst cluster-slowed --workload transfer --batch 10 --connections 16 --in-flight 4 \
            --rate 40000 --slow-follower "$half@$from"; then
            take cluster-slowed "$(window_ratio "$scratch/cluster-slowed.json")"
        fi
    fi
    nodes=1
    # Commit latency at a tenth of the peak of the same round.
    if wanted latency && [ -f "$scratch/transfer-1-64x16.json" ]; then
        peak=$(json committed_tps "$scratch/transfer-1-64x16.json")
        rate=$(awk -v peak="$peak" 'BEGIN { printf "%d", peak / 10 }')
        if burst latency --workload transfer --batch 1 --connections 64 --in-flight 16 \
            --rate "$rate"; then
            p50=$(json latency_us.p50 "$scratch/latency.json")
            device=$(json device.write_p50_us "$scratch/latency.json")
            take latency-p50 "$p50"
            take device-p50 "$device"
            take latency-above-device "$(awk -v a="$p50" -v b="$device" \
                'BEGIN { printf "%.0f", a - b }')"
        fi
    fi
done

# line FIGURE TARGET TEXT: median, lowest and highest of a figure.
line() {
    local file=$scratch/values.$1
    [ -f "$file" ] || return 0
    sort -g "$file" | awk -v text="$3" -v target="$2" '
        { value[NR] = $1 }
        END {
            middle = NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2
            verdict = ""
            if (target != "-") {
                number = substr(target, 3) + 0
                good = substr(target, 1, 2) == ">=" ? middle >= number : middle <= number
                verdict = good ? "met" : "MISSED"
            }
            form = middle >= 1000 ? "%.0f" : "%.4g"
            printf "%-46s %12s %12s %12s  %-11s %s\n", text, sprintf(form, middle),
                sprintf(form, value[1]), sprintf(form, value[NR]), target, verdict
        }'
}

printf '\n%-46s %12s %12s %12s  %-11s\n' figure median lowest highest target
line transfer-1000 ">=900000" "transfer, 1,000 per frame, /s"
line insert-1000 ">=1200000" "insert of 100 bytes, 1,000 per frame, /s"
line hot-1000 ">=4000000" "hot, 1,000 per frame, /s"
line transfer-1-64x16 ">=500000" "transfer, one per frame, 64 x 16, /s"
line transfer-1-64x1 "-" "transfer, one per frame, 64 x 1, /s"
line transfer-1-64x64 "-" "transfer, one per frame, 64 x 64, /s"
for pipeline in 1 16 64; do
    line "redis-64x$pipeline" "-" "redis SET, appendfsync always, 64 x $pipeline, /s"
    line "ratio-64x$pipeline" ">=1.5" "transfer / redis, 64 x $pipeline"
done
line cluster-transfer-1000 ">=450000" "3 nodes: transfer, 1,000 per frame, /s"
line cluster-transfer-1-64x16 ">=220000" "3 nodes: transfer, one per frame, 64 x 16, /s"
line cluster-leader-ns "<=1300" "3 nodes: leader CPU per transaction, ns"
line cluster-follower-ns "<=900" "3 nodes: follower CPU per transaction, ns"
line cluster-p50 "-" "3 nodes: transfer, 1,000 per frame: p50, us"
line cluster-p99 "-" "3 nodes: transfer, 1,000 per frame: p99, us"
line cluster-paused "<=1.5" "3 nodes: p99 with a follower paused / healthy"
line cluster-slowed "<=1.5" "3 nodes: p99 with a follower's disk 100x slower / healthy"
line latency-p50 "-" "commit latency p50 at 10 % of peak, us"
line device-p50 "-" "idle device, durable 4 KiB write p50, us"
line latency-above-device "<=150" "latency above the device, us"
line insert-log-ratio "<=1.5" "log bytes per payload byte, insert"
line insert-overhead "<=128" "memory per row beside its bytes, insert"
line replay ">=3000000" "replay, records/s"
line transfer-1000-p50 "-" "transfer, 1,000 per frame: latency p50, us"
line transfer-1000-node-ns "-" "transfer, 1,000 per frame: node CPU, ns"
[ "$failed" -eq 0 ]
