#!/usr/bin/env bash
# ONNX Runtime on Linux makes an identifier of the machine in the home folder when it is imported, and keeps events there.
#
# Versions: onnxruntime 1.31.1, Python 3.11. Date: 2026-11-30.
# One would guess: a library that computes graphs writes no file, tells nobody anything, and, if it does, the call
#   disable_telemetry_events() right after the import ends that.
# What is true: the wheels for Linux have telemetry on. The import alone writes a persistent identifier and a database of
#   events, to be sent over HTTPS, below ~/.cache. The call comes too late for both. ORT_DISABLE_TELEMETRY=1, set before
#   the import, keeps them away; ORT_TELEMETRY_DISABLED=1, a name that is in use for it as well, is not looked at. Where
#   CI is set nothing is written, so tests in continuous integration do not see it.
# Why our users meet it: a server of confidential models that starts with a read-only home, or in a network that lets
#   nothing out, has a component that wants both; and a customer's machine gets an identifier that nobody told it of.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnxruntime==1.31.1

# What an import leaves in an empty home, with these settings of the environment and this program.
left_by() {
    local home program=$1
    shift
    home=$(mktemp -d -p "$place")
    env -i PATH="$PATH" HOME="$home" "$@" "$place/venv/bin/python" -c "$program"
    (cd "$home" && find . -type f | sort | tr '\n' ' ')
}

importing="import onnxruntime"
calling="import onnxruntime; onnxruntime.disable_telemetry_events()"
plain=$(left_by "$importing")
called=$(left_by "$calling")
disabled=$(left_by "$importing" ORT_DISABLE_TELEMETRY=1)
other=$(left_by "$importing" ORT_TELEMETRY_DISABLED=1)
tested=$(left_by "$importing" CI=1)
printf 'import alone:                  %s\n' "${plain:-nothing}"
printf 'with the call that disables:   %s\n' "${called:-nothing}"
printf 'with ORT_DISABLE_TELEMETRY=1:  %s\n' "${disabled:-nothing}"
printf 'with ORT_TELEMETRY_DISABLED=1: %s\n' "${other:-nothing}"
printf 'with CI=1:                     %s\n' "${tested:-nothing}"
[[ $plain == *deviceid* ]] || { echo "an import leaves no identifier any more" >&2; exit 1; }
[[ $called == *deviceid* ]] || { echo "the call keeps the identifier away now" >&2; exit 1; }
[[ -z $disabled ]] || { echo "ORT_DISABLE_TELEMETRY=1 does not keep it away any more" >&2; exit 1; }
[[ $other == *deviceid* ]] || { echo "ORT_TELEMETRY_DISABLED=1 keeps it away now" >&2; exit 1; }
[[ -z $tested ]] || { echo "with CI set something is written now" >&2; exit 1; }
echo "as described"
