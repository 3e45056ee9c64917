"""Generated stubs of the services `keylock.v1`; see `proto/generate.sh`."""
