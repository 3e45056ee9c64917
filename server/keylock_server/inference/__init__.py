"""Models that are served: bundles loaded, graphs in ONNX Runtime, and the backends that compute explainers."""
