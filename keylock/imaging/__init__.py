"""Images: from untrusted files to the pixels and tensors that a model sees, and from maps to pictures."""
