#!/usr/bin/env bash
# The 517 cases of the Autobahn test suite, run by kosoku (PyPI) against a real node whose only listener echoes
# (`listener.echo`), in two steps: framing, UTF-8, closing and limits; then compression. Prints `N passed, N failed,
# N skipped` for each; non-zero when any case failed, was not run, or found a feature missing.
#
# SIGNALBOX_BIN names the executable; without it, it is built. STEP_S bounds each step, in seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly KOSOKU=0.1.0
readonly STEP_S=${STEP_S:-900}
readonly READY_S=${READY_S:-60}
readonly -A CASES=([protocol]=301 [compression]=216)
target=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
work=$target/autobahn
mkdir -p "$work"
folder=$(mktemp -d "$work/run.XXXXXX")
node_pid=

finish() {
    local code=$?
    # Only what this script started.
    if [ -n "$node_pid" ]; then
        kill -TERM "$node_pid" 2>/dev/null || true
        wait "$node_pid" 2>/dev/null || true
    fi
    if [ $code -ne 0 ]; then tail -n 30 "$folder"/*.log 2>/dev/null || true; fi
    rm -rf "$folder"
}
trap finish EXIT

if ! python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    printf '0 passed, 0 failed, 2 skipped: python 3.10 with venv is not installed\n'
    exit 0
fi
if [ "$(cat "$work/venv/installed" 2>/dev/null)" != "$KOSOKU" ]; then
    python3 -m venv --clear "$work/venv"
    if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check "kosoku==$KOSOKU" "setuptools<81"; then
        printf '0 passed, 0 failed, 2 skipped: kosoku cannot be installed\n'
        exit 0
    fi
    printf '%s\n' "$KOSOKU" >"$work/venv/installed"
fi

if [ -z "${SIGNALBOX_BIN:-}" ]; then
    cargo build --release --locked
    SIGNALBOX_BIN=$target/release/signalbox
fi
# Messages of 16 MiB come and go back whole.
cat >"$folder/config.toml" <<CONFIG
data_dir = "$folder/data"
[admin]
address = "127.0.0.1:0"
[slow_receiver]
queue_max = "64MiB"
reply_reserve = "64MiB"
[[listener]]
transport = "websocket"
address = "127.0.0.1:0"
path = "/echo"
echo = true
message_max = "16MiB"
compression = "takeover"
CONFIG
"$SIGNALBOX_BIN" run --config "$folder/config.toml" >"$folder/node.log" 2>&1 &
node_pid=$!
waited=0
until url=$(grep -om1 'ws://127.0.0.1:[0-9]*/echo' "$folder/node.log"); do
    if ! kill -0 "$node_pid" 2>/dev/null || [ $((waited += 1)) -gt $((READY_S * 10)) ]; then
        printf 'the node was not ready within %d s\n' "$READY_S"
        exit 1
    fi
    sleep 0.1
done

# What kosoku reported for each case of a step: only these endings are good.
judge() {
    python3 - "$1" "$2" <<'PYTHON'
import json
import pathlib
import sys

folder, expected = pathlib.Path(sys.argv[1]), int(sys.argv[2])
good = {"OK", "NON-STRICT", "INFORMATIONAL"}
(cases,) = json.loads((folder / "index.json").read_text()).values()
bad = {name: case for name, case in cases.items() if not {case["behavior"], case["behaviorClose"]} <= good}
for name, case in sorted(bad.items()):
    print(f"FAILED  {name}: {case['behavior']}, close {case['behaviorClose']}")
missing = expected - len(cases)
print(f"{len(cases) - len(bad)} passed, {len(bad) + missing} failed, 0 skipped")
sys.exit(1 if bad or missing else 0)
PYTHON
}

failed=0
step() {
    local name=$1 begun=$SECONDS
    shift
    printf -- '--- %s: %d cases\n' "$name" "${CASES[$name]}"
    rm -rf "$work/$name"
    timeout "$STEP_S" "$work/venv/bin/kosoku" -m fuzzingclient -p 2 "$@" -o "$work/$name" "$url" \
        >"$folder/$name.log" 2>&1 || tail -20 "$folder/$name.log"
    judge "$work/$name" "${CASES[$name]}" || failed=1
    printf '%s took %d s\n' "$name" "$((SECONDS - begun))"
}

step protocol -x '12.*' -x '13.*'
step compression -i '12.*' -i '13.*'
exit $failed
