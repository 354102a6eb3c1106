#!/usr/bin/env bash
# Clients that others wrote against a real node: Autobahn|Python and Autobahn|JS with every transport and serializer they
# have, each alone and all of them mixed; then those two, Wampy.js, xconn, xconn-core, swampyer, battler-wamp and wampproto in all pairs:
# on one node, and on two that compress. Prints `N passed, N failed, N skipped`; non-zero when anything failed.
#
# SIGNALBOX_BIN names the executable; without it, it is built. The clients are installed below target/interop.
# A tool that is missing (python3 with venv, node 20 or later with npm, a package registry) skips its suites.
# WS_URL and RS_URL, when both are set, name a router that runs already; then none is started.
# `run.sh install` installs the clients and ends; other tests use them too.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly suites=tests/interop
readonly SERIALIZERS=(json msgpack cbor)
# Wampy.js and the WebSocket it takes.
readonly WAMPY_PACKAGES=(wampy@8.0.2 ws@8.18.3)
readonly WAMPY="${WAMPY_PACKAGES[*]}"
readonly READY_S=${READY_S:-60}
readonly SUITE_S=300
# Pairs of clients at a time: they wait for each other most of it.
readonly PAIRS_JOBS=6
work=$(cargo metadata --format-version 1 --no-deps 2>/dev/null |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])' 2>/dev/null || echo "$PWD/target")/interop
mkdir -p "$work"
results=$(mktemp "$work/results.XXXXXX")
node_folder=$(mktemp -d "$work/node.XXXXXX")
# Paths of sockets are short.
socket_folder=$(mktemp -d)
node_pids=()
COMPRESSED_URLS=()
# Where sessions over HTTP are served; not by a router that runs already.
HTTP_URL=

say() {
    printf '%s\n' "$*" | tee -a "$results"
}

finish() {
    local code=$?
    # Only what this script started, and only while it still runs.
    local pid log
    for pid in "${node_pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    if [ $code -ne 0 ]; then
        for log in "$node_folder"/log "$node_folder"/*/log; do
            if [ -f "$log" ]; then
                printf -- '--- %s ends:\n' "${log#"$node_folder/"}"
                tail -40 "$log"
            fi
        done
    fi
    rm -rf "$node_folder" "$socket_folder" "$results"
}
trap finish EXIT

# ---- what is there

python=
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    say "skipped Autobahn|Python: python3 with venv is not installed"
elif [ -x "$work/venv/bin/python" ] && cmp -s "$suites/python/requirements.txt" "$work/venv/installed.txt"; then
    python=$work/venv/bin/python
elif python3 -m venv --clear "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$suites/python/requirements.txt"; then
    cp "$suites/python/requirements.txt" "$work/venv/installed.txt"
    python=$work/venv/bin/python
else
    say "skipped Autobahn|Python: it cannot be installed"
fi

javascript=()
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    say "skipped Autobahn|JS: node or npm is not installed"
elif [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 20 ]; then
    say "skipped Autobahn|JS: node $(node --version) is older than 20"
else
    mkdir -p "$work/js"
    if ! cmp -s "$suites/js/package-lock.json" "$work/js/installed.json"; then
        cp "$suites/js/package.json" "$suites/js/package-lock.json" "$work/js/"
        rm -f "$work/js/wampy.txt"
        if (cd "$work/js" && npm ci --silent --no-audit --no-fund --ignore-scripts); then
            cp "$suites/js/package-lock.json" "$work/js/installed.json"
        fi
    fi
    # Its optional parts are native code for each platform, which a lock file would have to name one by one.
    if ! [ "$(cat "$work/js/wampy.txt" 2>/dev/null)" = "$WAMPY" ]; then
        (cd "$work/js" && npm install --silent --no-save --no-package-lock --no-audit --no-fund --ignore-scripts \
            --omit=optional "${WAMPY_PACKAGES[@]}") && echo "$WAMPY" >"$work/js/wampy.txt" || true
    fi
    if cmp -s "$suites/js/package-lock.json" "$work/js/installed.json"; then
        export NODE_PATH=$work/js/node_modules
        javascript=(node --no-deprecation)
        # A WebSocket of its own has node from version 22 on.
        if [ "$(node -p 'typeof WebSocket')" = undefined ]; then javascript+=(--experimental-websocket --no-warnings); fi
    else
        say "skipped Autobahn|JS: it cannot be installed"
    fi
fi

# Clients in Rust, in a crate and a workspace of their own.
rust_clients=
if ! command -v cargo >/dev/null; then
    say "skipped clients in Rust: cargo is not installed"
elif CARGO_TARGET_DIR=$work/rust cargo build --quiet --locked --manifest-path "$suites/rust/Cargo.toml"; then
    rust_clients=$work/rust/debug/interop-clients
else
    say "skipped clients in Rust: they cannot be built"
fi

if [ "${1:-}" = install ]; then exit 0; fi

# ---- the node

binary=${SIGNALBOX_BIN:-}

# Runs the configuration in a folder until it says where to connect, which it does once every shard serves: WS_URL.
launch() {
    if [ -z "$binary" ]; then
        cargo build --quiet --locked
        binary=$(dirname "$work")/debug/signalbox
    fi
    "$binary" run --config "$1/config.toml" >"$1/log" 2>&1 &
    node_pids+=($!)
    local waited=0
    until WS_URL=$(grep -om1 'ws://127.0.0.1:[0-9]*/ws' "$1/log"); do
        if ! kill -0 "${node_pids[-1]}" 2>/dev/null || [ $((waited += 1)) -gt $((READY_S * 10)) ]; then
            say "FAILED  node: it was not ready within $READY_S s"
            return 1
        fi
        sleep 0.1
    done
}

start_node() {
    cat >"$node_folder/config.toml" <<-CONFIG
	data_dir = "$node_folder/data"
	[[listener]]
	transport = "websocket"
	address = "127.0.0.1:0"
	[[listener]]
	transport = "rawsocket"
	address = "127.0.0.1:0"
	[[listener]]
	address = "127.0.0.1:0"
	compression = "takeover"
	[[listener]]
	address = "127.0.0.1:0"
	compression = "no_takeover"
	[[listener]]
	transport = "http"
	address = "127.0.0.1:0"
	[[listener]]
	transport = "auto"
	socket = "$socket_folder/socket"
	[http]
	accepted = "204"
	[admin]
	address = "127.0.0.1:0"
	[[history]]
	realm = "realm1"
	uri = "interop.history"
	match = "prefix"
	CONFIG
    launch "$node_folder" || return 1
    RS_URL=$(grep -om1 'rs://127.0.0.1:[0-9]*' "$node_folder/log")
    HTTP_URL=$(grep -om1 'http://127.0.0.1:[0-9]*/wamp/' "$node_folder/log" | sed 's|wamp/$||') || true
    # All but the first compress; Autobahn|Python always offers it.
    mapfile -t COMPRESSED_URLS < <(grep -o 'ws://127.0.0.1:[0-9]*/ws' "$node_folder/log" | sed -n 2,3p)
    say "passed  node: ready, $WS_URL and $RS_URL"
}

# A page of the admin endpoint of one of two nodes.
page() {
    local admin
    admin=$(grep -om1 'http://127.0.0.1:[0-9]*/status' "$node_folder/$1/log")
    "$python" -c 'import sys, urllib.request as request; print(request.urlopen(sys.argv[1]).read().decode())' \
        "${admin%status}$2"
}

# Two nodes that are one router, each with a listener that compresses in its own way: WS_URLS.
start_two() {
    local ports node compressions=(takeover no_takeover) waited=0
    ports=($("$python" -c 'import socket
held = [[socket.socket(type=kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)] for _ in range(2)]
for stream, datagram in held:
    stream.bind(("127.0.0.1", 0))
    datagram.bind(stream.getsockname())
print(*(stream.getsockname()[1] for stream, _ in held))'))
    "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$node_folder/keys"
    chmod 600 "$node_folder/keys"
    WS_URLS=()
    for node in 0 1; do
        mkdir -p "$node_folder/$node"
        cat >"$node_folder/$node/config.toml" <<-CONFIG
	data_dir = "$node_folder/$node/data"
	[[listener]]
	address = "127.0.0.1:0"
	compression = "${compressions[$node]}"
	[admin]
	address = "127.0.0.1:0"
	[cluster]
	discovery = "static"
	seeds = ["127.0.0.1:${ports[0]}", "127.0.0.1:${ports[1]}"]
	address = "127.0.0.1:${ports[$node]}"
	key_file = "$node_folder/keys"
	[relay]
	address = "127.0.0.1:0"
	CONFIG
        launch "$node_folder/$node" || return 1
        WS_URLS+=("$WS_URL")
    done
    until [ "$(page 0 cluster | grep -o '"state":"alive"' | wc -l)" -eq 2 ]; do
        if [ $((waited += 1)) -gt $((READY_S * 10)) ]; then
            say "FAILED  nodes: they did not find each other within $READY_S s"
            return 1
        fi
        sleep 0.1
    done
    say "passed  nodes: ready, ${WS_URLS[*]}"
}

# What came compressed to both nodes was unfolded there.
check_compression() {
    local node bytes
    for node in 0 1; do
        bytes=$(page "$node" metrics | awk '/^signalbox_inflated_bytes_total/ {sum += $NF} END {print sum + 0}')
        if [ "$bytes" -gt 0 ]; then
            say "passed  compression: $bytes bytes were unfolded on node $node"
        else
            say "FAILED  compression: nothing came compressed to node $node"
        fi
    done
}

stop_nodes() {
    local pid code
    for pid in "${node_pids[@]}"; do
        code=0
        kill -TERM "$pid"
        wait "$pid" || code=$?
        if [ $code -eq 0 ]; then say "passed  node: drained and stopped"; else say "FAILED  node: exit status $code"; fi
    done
    node_pids=()
}

# Runs one suite; one that dies without naming a failed case is a failure itself.
suite() {
    local name=$1 code=0 before after
    shift
    before=$(grep -c '^FAILED' "$results" || true)
    timeout "$SUITE_S" "$@" | tee -a "$results" || code=$?
    after=$(grep -c '^FAILED' "$results" || true)
    if [ $code -ne 0 ] && [ "$before" = "$after" ]; then say "FAILED  $name: exit status $code"; fi
}

# ---- the suites

run_suites() {
    local url serializer
    export PYTHONDONTWRITEBYTECODE=1
    if [ -n "$python" ]; then
        for url in "$WS_URL" "$RS_URL"; do
            for serializer in "${SERIALIZERS[@]}"; do
                suite "python $url $serializer" "$python" "$suites/python/suite.py" "$url" "$serializer"
            done
        done
        for serializer in "${SERIALIZERS[@]}"; do
            suite "python $WS_URL $serializer.batched" "$python" "$suites/python/suite.py" "$WS_URL" "$serializer.batched"
        done
        for url in "${COMPRESSED_URLS[@]}"; do
            for serializer in json cbor msgpack.batched; do
                suite "python compressed $url $serializer" "$python" "$suites/python/suite.py" "$url" "$serializer"
            done
        done
        if [ -n "$HTTP_URL" ]; then suite http "$python" "$suites/python/over_http.py" "$HTTP_URL" "$WS_URL"; fi
        if [ -S "$socket_folder/socket" ]; then suite "python unix" "$python" "$suites/python/unix.py" "$socket_folder/socket"; fi
        if [ -f README.md ]; then
            suite readme "$python" "$suites/python/readme.py" README.md "$WS_URL"
        else
            say "skipped readme: there is none"
        fi
    fi
    if [ ${#javascript[@]} -gt 0 ]; then
        for serializer in "${SERIALIZERS[@]}"; do
            suite "js $WS_URL $serializer" "${javascript[@]}" "$suites/js/suite.js" "$WS_URL" "$serializer"
        done
        # Its RawSocket has no other serializer.
        suite "js $RS_URL json" "${javascript[@]}" "$suites/js/suite.js" "$RS_URL" json
        if [ -n "$HTTP_URL" ]; then
            suite "js $HTTP_URL json" "${javascript[@]}" "$suites/js/suite.js" "${HTTP_URL}wamp/longpoll" json
        fi
    fi
    if [ -n "$python" ] && [ ${#javascript[@]} -gt 0 ]; then
        suite mixed "$python" "$suites/python/mixed.py" "$WS_URL" "$RS_URL" "${javascript[@]}" "$suites/js/mixed.js"
    else
        say "skipped mixed: it needs both clients"
    fi
    if [ -n "$python" ]; then pairs "$WS_URL"; fi
}

pairs() {
    local modules=
    if [ ${#javascript[@]} -gt 0 ]; then modules=$NODE_PATH; fi
    suite "pairs $*" "$python" "$suites/pairs/run.py" --jobs "$PAIRS_JOBS" "$modules" "$rust_clients" "$@"
}

if [ -z "$python" ] && [ ${#javascript[@]} -eq 0 ]; then
    say "skipped everything: there is no client"
elif [ -n "${WS_URL:-}" ] && [ -n "${RS_URL:-}" ]; then
    run_suites
elif start_node; then
    run_suites
    stop_nodes
    if [ -n "$python" ] && start_two; then
        pairs "${WS_URLS[@]}"
        check_compression
        stop_nodes
    fi
fi

count() {
    grep -c "^$1" "$results" || true
}
printf '%d passed, %d failed, %d skipped\n' "$(count passed)" "$(count FAILED)" "$(count skipped)"
[ "$(count FAILED)" -eq 0 ]
