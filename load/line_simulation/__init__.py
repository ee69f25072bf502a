"""The gateway's line in front of simulated engines whose steps cost what was measured on CPUs."""
