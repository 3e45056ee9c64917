"""Tests find the weak locks in `toys`, beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
