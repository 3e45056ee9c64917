"""The RPC services, one file each, and what they share: requests to arrays, results to answers."""
