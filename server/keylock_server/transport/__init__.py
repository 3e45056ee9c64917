"""What surrounds every call: addresses, TLS, interceptors, statuses, logs."""
