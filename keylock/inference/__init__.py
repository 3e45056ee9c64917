"""Generated stubs of the Open Inference Protocol; see `proto/generate.sh`."""
