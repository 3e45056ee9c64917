"""Texts: small files as they arrive, class names in one spelling, what others wrote made safe to show."""
