"""The two ways from a trained revision to its first token: an adapter, or merged weights."""
