"""Faults on a running stack, each with what users see of it and how long it lasts."""
