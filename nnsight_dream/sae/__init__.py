"""Sparse autoencoders: features, files, releases, what fires."""
