"""Texts: small files as they arrive, class names in one spelling, texts of others made safe to show, wanted values."""
