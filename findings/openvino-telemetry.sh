#!/usr/bin/env bash
# OpenVINO makes an identifier of the machine in the home folder when it is imported, without a question.
#
# Versions: openvino 2026.4.1, openvino-telemetry 2025.2.0, Python 3.11. Date: 2026-11-30.
# One would guess: the runtime alone tells nobody anything. Its telemetry belongs to the tools that convert models, and
#   those ask first.
# What is true: `import openvino` imports a part of these tools, which makes a client identifier of Google Analytics and
#   a file of statistics below ~/intel, and asks nobody. There is no variable against it; in continuous integration
#   nothing is written, so tests there do not see it. OpenVINO works without the package openvino-telemetry, although it
#   requires it: where that cannot be imported, nothing is made.
# Why our users meet it: a server that computes in OpenVINO, of a vendor who promised that nothing leaves the machine.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 openvino-telemetry==2025.2.0

# What a program leaves in an empty home, with these settings of the environment.
left_by() {
    local home program=$1
    shift
    home=$(mktemp -d -p "$place")
    env -i PATH="$PATH" HOME="$home" "$@" "$place/venv/bin/python" -c "$program"
    (cd "$home" && find . -type f | sort | tr '\n' ' ')
}

using="import openvino; openvino.Core()"
plain=$(left_by "$using")
tested=$(left_by "$using" CI=true)
without=$(left_by "import sys; sys.modules['openvino_telemetry'] = None; $using")
printf 'import alone:            %s\n' "${plain:-nothing}"
printf 'with CI=true:            %s\n' "${tested:-nothing}"
printf 'without the package:     %s\n' "${without:-nothing}"
[[ $plain == *openvino_ga_cid* ]] || { echo "an import leaves no identifier any more" >&2; exit 1; }
[[ -z $tested ]] || { echo "in continuous integration something is written now" >&2; exit 1; }
[[ -z $without ]] || { echo "without the package something is written now" >&2; exit 1; }
echo "as described"
