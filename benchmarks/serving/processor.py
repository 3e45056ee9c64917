"""What the processor is, for results: speeds mean little without it."""

import platform
from pathlib import Path

__all__ = ["describe_processor"]

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_processor() -> str:
    """Name the processor and its features that matter to networks, as far as the machine tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = [name for name in _TELLING if name in about.get("flags", "").split()]
    return f"{about.get('model name', platform.machine())} ({', '.join(features) or 'features unknown'})"
