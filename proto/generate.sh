#!/bin/sh
# Generates the committed stubs keylock/v1 and keylock/inference from proto/.
#
#   proto/generate.sh            writes the stubs into the working tree
#   proto/generate.sh --check    compares the committed stubs with fresh ones; exits 1 if they differ
#
# The tools live in an environment of their own, .venv-proto (PROTO_VENV names another one), because stubs of
# grpcio-tools 1.76 run on protobuf 6 and 7, while those of later versions refuse protobuf 6. That environment is made
# on first use with PYTHON (default: python3).
set -eu
cd "$(dirname "$0")/.."
venv=${PROTO_VENV:-.venv-proto}
python=$venv/bin/python

if [ ! -x "$python" ] || ! "$python" -c 'import grpc_tools, mypy_protobuf, google.rpc.status_pb2' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check \
        'grpcio-tools==1.76.0' 'mypy-protobuf==5.1.0' 'googleapis-common-protos==1.72.0' 'setuptools<81'
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Where google/rpc/status.proto is.
common=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
protos=$(find proto/keylock -name '*.proto' | LC_ALL=C sort)
# shellcheck disable=SC2086  # The list of files is meant to be split.
PATH="$(cd "$venv/bin" && pwd):$PATH" "$python" -W ignore -m grpc_tools.protoc -I proto -I "$common" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" $protos

printf '"""Generated stubs of the services `keylock.v1`; see `proto/generate.sh`."""\n' >"$out/keylock/v1/__init__.py"
printf '"""Generated stubs of the Open Inference Protocol; see `proto/generate.sh`."""\n' \
    >"$out/keylock/inference/__init__.py"

status=0
for package in v1 inference; do
    if [ "${1:-}" = --check ]; then
        if ! diff -r -q -x __pycache__ "$out/keylock/$package" "keylock/$package"; then
            status=1
        fi
    else
        mkdir -p "keylock/$package"
        rm -f "keylock/$package"/*_pb2*
        cp "$out/keylock/$package"/* "keylock/$package/"
    fi
done
if [ "$status" -ne 0 ]; then
    echo "error: the committed stubs differ from proto/; run proto/generate.sh and commit the result" >&2
fi
exit $status
