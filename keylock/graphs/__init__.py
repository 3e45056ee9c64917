"""What graphs of a bundle are given and give, for whoever compiles them and whoever runs them. Needs no torch."""
