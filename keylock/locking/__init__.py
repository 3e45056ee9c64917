"""What a lock is trained with: losses, decoys, and patterns of a key's kind. Needs torch."""
