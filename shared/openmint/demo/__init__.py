"""The demonstration: one policy's whole life on real parts and real data, asserted step by step."""
