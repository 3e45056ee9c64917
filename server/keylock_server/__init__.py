"""The keylock server."""
