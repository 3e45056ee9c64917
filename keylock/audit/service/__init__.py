"""Attacks on the running service. Importing this package registers them.

They run last, the search of logs and memory after all others, so that everything has been through the server by then.
"""

from keylock.audit.service import secrets, timing, tricks

__all__ = ["secrets", "timing", "tricks"]
