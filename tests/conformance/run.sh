#!/usr/bin/env bash
# Asks a real node every row of probes.toml, in a compatible and in a strict realm, and then Crossbar.io, as a control that
# the probe can tell answers apart. Prints `N passed, N failed` for each; non-zero when anything failed.
#
# SIGNALBOX_BIN names the executable; without it, it is built. Crossbar.io is installed below target/conformance; where it
# cannot be, the control is skipped and says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly here=tests/conformance
readonly CROSSBAR=crossbar==26.10.1
readonly READY_S=${READY_S:-60}
work=$(cargo metadata --format-version 1 --no-deps 2>/dev/null |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])' 2>/dev/null || echo "$PWD/target")/conformance
mkdir -p "$work"
folder=$(mktemp -d "$work/run.XXXXXX")
pids=()

finish() {
    local code=$?
    # Only what this script started, and only while it still runs.
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [ $code -ne 0 ]; then tail -n 30 "$folder"/*.log 2>/dev/null || true; fi
    rm -rf "$folder"
}
trap finish EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits until something listens on a port of this machine.
await() {
    for _ in $(seq "$((READY_S * 10))"); do
        if (: >"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 0; fi
        sleep 0.1
    done
    echo "nothing listens on port $1 after $READY_S s" >&2
    return 1
}

if [ -z "${SIGNALBOX_BIN:-}" ]; then
    cargo build --release --locked
    SIGNALBOX_BIN=$(dirname "$work")/release/signalbox
fi

port=$(free_port)
cat >"$folder/signalbox.toml" <<CONFIG
data_dir = "$folder/data"
[admin]
address = "127.0.0.1:0"
[[listener]]
transport = "rawsocket"
address = "127.0.0.1:$port"
[[realm]]
name = "com.example.compatible"
[[realm]]
name = "com.example.strict"
degree = "strict"
CONFIG
"$SIGNALBOX_BIN" run --config "$folder/signalbox.toml" >"$folder/signalbox.log" 2>&1 &
pids+=($!)
await "$port"
echo "--- Signalbox, compatible"
python3 "$here/probe.py" "127.0.0.1:$port" com.example.compatible
echo "--- Signalbox, strict"
python3 "$here/probe.py" "127.0.0.1:$port" com.example.strict strict

if ! [ -x "$work/venv/bin/crossbar" ] && ! { python3 -m venv --clear "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$CROSSBAR" >"$folder/pip.log" 2>&1; }; then
    rm -rf "$work/venv"
    echo "skipped the control: $CROSSBAR cannot be installed"
    exit 0
fi
port=$(free_port)
mkdir "$folder/crossbar"
cat >"$folder/crossbar/config.json" <<CONFIG
{"version": 2, "controller": {}, "workers": [{"type": "router",
  "realms": [{"name": "realm1", "roles": [{"name": "anonymous", "permissions": [{"uri": "", "match": "prefix",
    "allow": {"call": true, "register": true, "publish": true, "subscribe": true},
    "disclose": {"caller": false, "publisher": false}, "cache": true}]}]}],
  "transports": [{"type": "rawsocket", "serializers": ["json"],
    "endpoint": {"type": "tcp", "port": $port, "interface": "127.0.0.1"},
    "auth": {"anonymous": {"type": "static", "role": "anonymous"}}}]}]}
CONFIG
"$work/venv/bin/crossbar" start --cbdir "$folder/crossbar" >"$folder/crossbar.log" 2>&1 &
pids+=($!)
await "$port"
echo "--- Crossbar.io, as a control"
python3 "$here/probe.py" "127.0.0.1:$port" realm1 crossbar
