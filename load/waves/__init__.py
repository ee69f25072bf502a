"""Ours and stock engines side by side over the same adapters, for waves of cold policies and for running streams."""
