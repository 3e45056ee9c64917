#!/usr/bin/env bash
# Ray on one machine listens on all of its addresses, whatever address it is given.
#
# Versions: ray 2.60.0, Python 3.11, Linux. Date: 2026-11-30.
# One would guess: ray.init(_node_ip_address="127.0.0.1") keeps everything on the loopback device.
# What is true: that very address is taken for a mistake and replaced by an address of the machine that others reach.
#   127.0.0.2 is loopback too, and is kept: what Ray's processes tell each other then stays on the machine. But GCS,
#   raylet and workers accept connections on all addresses in both cases; there is no setting against it. What refuses
#   strangers is the token (RAY_AUTH_MODE=token), which ray.init() makes up in the home folder unless
#   RAY_AUTH_TOKEN_PATH names one.
# Why our users meet it: `keylock explain-many` starts Ray where a key is opened.
set -euo pipefail
place=$(mktemp -d /tmp/ray-XXXXXX)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check ray==2.60.0
head -c 32 /dev/urandom | sha256sum | cut -c1-64 > "$place/token"

cat > "$place/listening.py" <<'EOF'
import os
import sys
from pathlib import Path

import ray

given, place = sys.argv[1:]
ray.init(num_cpus=1, include_dashboard=False, _node_ip_address=given, _temp_dir=place, log_to_driver=False)


@ray.remote
def pid():
    return os.getpid()


worker = ray.get(pid.remote())
sockets = {}
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":  # LISTEN
            sockets[fields[9]] = set(fields[1].partition(":")[0]) == {"0"}


def everywhere(number):
    found = 0
    for link in Path(f"/proc/{number}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        found += sockets.get(target.removeprefix("socket:[").rstrip("]"), False)
    return found > 0


names = {}
for process in Path("/proc").glob("[0-9]*"):
    try:
        if place in (process / "cmdline").read_text():
            names[(process / "comm").read_text().strip()] = int(process.name)
    except OSError:
        continue
open_ones = [name for name in ("gcs_server", "raylet") if everywhere(names[name])]
print(ray.nodes()[0]["NodeManagerAddress"], *open_ones, *(["worker"] if everywhere(worker) else []))
EOF

listening() {
    env -i PATH="$PATH" HOME="$place/home" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token \
        RAY_AUTH_TOKEN_PATH="$place/token" "$place/venv/bin/python" "$place/listening.py" "$1" "$place/$2" 2>/dev/null
}

usual=$(listening 127.0.0.1 a)
other=$(listening 127.0.0.2 b)
printf 'given 127.0.0.1: has the address %s\n' "${usual/ /, listens on all: }"
printf 'given 127.0.0.2: has the address %s\n' "${other/ /, listens on all: }"
[[ $usual != 127.0.0.1* ]] || { echo "127.0.0.1 is kept now" >&2; exit 1; }
[[ $usual == *"gcs_server raylet worker" ]] || { echo "not all of them listen everywhere now" >&2; exit 1; }
[[ $other == "127.0.0.2 gcs_server raylet worker" ]] || { echo "127.0.0.2 is treated otherwise now" >&2; exit 1; }
echo "as described"
