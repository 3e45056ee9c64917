"""A bundle in torch: the locked model for research, and explainers that do not compile."""
