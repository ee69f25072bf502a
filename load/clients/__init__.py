"""Clients that ask for tokens and note when they came; the same for openmint and for its peers."""
