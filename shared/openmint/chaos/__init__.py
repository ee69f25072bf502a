"""Killing and pausing random parts of a running stack, and an oracle that says whether a promise was broken.

`openmint chaos --kills 25 --seed 1`. The oracle reads Postgres, the EVENTS stream, the store and the gateway; it trusts
none of the services under test.
"""
