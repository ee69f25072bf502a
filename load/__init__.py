"""Load scenarios: every figure that openmint publishes comes out of one of these commands."""
