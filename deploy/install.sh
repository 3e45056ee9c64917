#!/bin/sh
# Installs a keylock server, or what trains, into a folder of its own: what the images do, and what a machine without
# containers can do too.
#
#   deploy/install.sh FOLDER [EXTRAS] [DEVICE]
#
#   FOLDER   made by this script, for example /opt/keylock; the command is then FOLDER/bin/keylock
#   EXTRAS   parts of keylock; server,postgres if left out
#   DEVICE   cpu (if left out) leaves out what ONNX Runtime needs for graphics cards; gpu keeps it
#
# PYTHON names the interpreter. Says at the end how large the folder is, and how large compressed, and fails where that is
# too much for a server on processors.
set -eu

folder=${1:?"usage: deploy/install.sh FOLDER [EXTRAS] [DEVICE]"}
extras=${2:-server,postgres}
device=${3:-cpu}
source=$(cd "$(dirname "$0")/.." && pwd)

case $device in
cpu | gpu) ;;
*)
    echo "error: the device is cpu or gpu, not $device" >&2
    exit 2
    ;;
esac
if [ -e "$folder" ]; then
    echo "error: $folder is there already: remove it, or name another folder" >&2
    exit 2
fi

"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "$source[$extras]"
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ "$device" = cpu ]; then
    # ONNX Runtime looks for these when a graphics card is asked for, and never else.
    rm -f "$packages"/onnxruntime/capi/libonnxruntime_providers_cuda.so \
        "$packages"/onnxruntime/capi/libonnxruntime_providers_tensorrt.so
fi
# What installs has done its work, and files of tests are for those who build the packages.
rm -rf "$packages"/pip "$packages"/pip-*.dist-info "$folder"/bin/pip*
find "$packages" -type d -name tests -prune -exec rm -rf {} +
# The folder is read only where it runs, so what Python would write there is written now.
"$folder/bin/python" -m compileall -q "$packages"

case $extras in
*train* | *all*) ;;
*)
    if [ -e "$packages/torch" ]; then
        echo "error: torch came with the extras $extras, and a server needs none" >&2
        exit 1
    fi
    ;;
esac
"$folder/bin/keylock" --version
compressed=$(($(tar -C "$folder" -cf - . | gzip -c | wc -c) / 1000000))
echo "$folder: $(($(du -sk "$folder" | cut -f1) / 1000)) MB, compressed $compressed MB"
# An image of a server has 400 MB at most, compressed, and some fifty of them are the image of Python beneath it.
most=340
case $extras,$device in
*train* | *all* | *,gpu) ;;
*)
    if [ "$compressed" -gt "$most" ]; then
        echo "error: a server's folder has $compressed MB compressed, and $most at most are allowed" >&2
        exit 1
    fi
    ;;
esac
