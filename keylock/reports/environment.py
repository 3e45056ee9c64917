"""Which versions of the packages that matter are installed, for reports."""

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_versions"]

_PACKAGES = ("keylock", "torch", "onnxruntime-gpu", "onnxruntime", "grpcio", "numpy", "cryptography")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
