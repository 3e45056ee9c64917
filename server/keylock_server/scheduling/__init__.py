"""Who is next: bounded queues before threads, for models and for decoding."""
