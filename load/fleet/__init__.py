"""A fleet in memory: a thousand engines and a million policies on one timeline, without asyncio.

The scheduler's core in it is the one that serves; engines take the timings of `openmint.engines.simulated`. What is
modelled and what is left out stands at the top of each file.
"""
