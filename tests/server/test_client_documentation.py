"""The code and the commands of docs/client.md and docs/cli.md, run word for word against a real server."""

import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from keylock.bundle import ExplainerEntry, KeyFile, write_bundle
from keylock.licensing.receipt_keys import ReceiptKey
from keylock_client import LocalModel

DOCS = Path(__file__).parents[2] / "docs"
TARGET = "localhost:8470"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / name).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def customer(start_server, vendor, tmp_path_factory, tiny, tls_files, sealed_bundle, sealed_lock):
    """A directory with the files of the examples, and the server they talk to."""
    folder = tmp_path_factory.mktemp("customer")
    explainers = (
        ExplainerEntry(name="grad_cam", graph="graphs/fine.onnx"),
        ExplainerEntry(name="gradient", graph="graphs/coarse.onnx"),
    )
    bundle, key_file = folder / "pets.klb", folder / "key"
    write_bundle(
        bundle,
        vendor.content(name="pets", classes=("cat", "dog", "bird", "fish"), explainers=explainers),
        signing_key=vendor.signing_key,
        seed=vendor.seed,
        sealer=KeyFile.create(key_file),
    )
    for name in ("cat.jpg", "dog.png", "dog.jpg"):
        Image.fromarray(tiny.pixels(20, 30)).save(folder / name)
    # For explaining without a server.
    shutil.copy(sealed_bundle.public, folder / "public.klb")
    shutil.copy(sealed_bundle.issuer, folder / "issuer.pub.pem")
    stamped = LocalModel(sealed_bundle.public).info.preprocessing.denormalise(
        sealed_lock.key.apply(sealed_lock.images[:1].numpy() * 0.5)
    )
    Image.fromarray(stamped[0]).save(folder / "stamped.png")
    (folder / "acme.license").write_text(vendor.grant().token)
    (folder / "vendor-ca.pem").write_bytes((tls_files / "server.pem").read_bytes())
    year = timedelta(days=365)
    receipts = folder / "receipts.pem"
    ReceiptKey.create(receipts, vendor.signing_key, not_before=tiny.now - year, expires=tiny.now + year)
    target = start_server(bundle=bundle, key_file=key_file, receipt_key=receipts).server.target
    return folder, target


@pytest.mark.parametrize("number", range(len(blocks("client.md", "python"))))
def test_the_code_for_the_client_runs(customer, monkeypatch, loop_thread, number):
    folder, target = customer
    monkeypatch.chdir(folder)
    names = {}
    code = blocks("client.md", "python")[number].replace(TARGET, target)
    exec(compile(code, "docs/client.md", "exec"), names)  # noqa: S102 - our own documentation
    if "ask" in names:
        loop_thread.run(names["ask"]())
    if number == 0:
        assert Image.open("why.png").close() is None


def test_the_commands_run(customer):
    folder, target = customer
    [block] = [text for text in blocks("cli.md", "") if "keylock predict" in text]
    environment = os.environ | {"KEYLOCK_TARGET": target, "KEYLOCK_TIMEOUT_S": "20"}
    # The command of this very environment, wherever else one may be installed.
    function = f'keylock() {{ "{sys.executable}" -m keylock "$@"; }}\n'
    for command in block.splitlines():
        done = subprocess.run(
            ["sh", "-c", function + command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout
    assert {"overlay.png", "map.npy", "overlays"} <= {path.name for path in folder.iterdir()}


def test_the_example_for_json_reads_what_the_command_prints(customer):
    folder, target = customer
    [code] = blocks("cli.md", "python")
    command = [sys.executable, "-m", "keylock", "explain", "cat.jpg", "--json", "--server", target]
    printed = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    done = subprocess.run([sys.executable, "-c", code + "print(saliency.shape)"], input=printed, capture_output=True)
    assert done.stdout == b"(8, 8)\n"
