"""A real openmint stack for load scenarios: embedded servers, gateway, scheduler, engine hosts, seeded policies."""
