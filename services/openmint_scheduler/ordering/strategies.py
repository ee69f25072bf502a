"""The orderings. `fair` is the one to run; the others are what it is compared with."""

from openmint_scheduler.ordering.contract import Ordering

FAIR = Ordering(has_classes=True, has_turns=True, key=lambda deadline_s, asked_s: deadline_s)
"""Class, then the tenant that has had least for its weight, then the earliest deadline."""

DEADLINE = Ordering(has_classes=True, has_turns=False, key=lambda deadline_s, asked_s: deadline_s)
"""Class, then the earliest deadline, whoever's it is."""

ARRIVAL = Ordering(has_classes=False, has_turns=False, key=lambda deadline_s, asked_s: asked_s)
"""First come, first served."""
