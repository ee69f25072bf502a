"""Who asks for what, and when: crowds of policies and their arrivals, from public traces or published parameters."""
