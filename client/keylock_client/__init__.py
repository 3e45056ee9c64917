"""The keylock client."""
