"""Signing keys, signed texts, trusted issuers, digests, and values that are never shown."""
