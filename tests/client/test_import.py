"""The client is light: importing it loads no framework, and nothing of the server or the command line."""

import subprocess
import sys

HEAVY = {
    "torch",
    "torchvision",
    "onnxruntime",
    "onnx",
    "captum",
    "sqlalchemy",
    "typer",
    "rich",
    "keylock_server",
    "joserfc",
}


def test_importing_the_client_loads_nothing_heavy():
    script = "import keylock_client, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.partition(".")[0] for name in modules}
    assert "grpc" in loaded
    # What opens bundles is loaded when it is first used.
    assert "keylock.bundle" not in modules
    assert not HEAVY & set(loaded)


def test_all_names_exist():
    import keylock_client

    assert all(hasattr(keylock_client, name) for name in keylock_client.__all__)
