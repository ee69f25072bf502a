"""The core with its invariants looked at after each event."""

from collections import Counter

from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.messages import AnswerFailed, Condemn, LoadKey, Noted, Remove

UNADDRESSED = (AnswerFailed, Noted, Condemn)
"""What the core says that is no command to an engine."""


class CheckedCore(LoaderScheduler):
    """A core that looks at itself after each event."""

    def handle(self, event, now_s):
        held_before = set(self.state.interest.keys())
        boots_before = {name: entry.boot_id for name, entry in self.state.ledger.engines.items()}
        commands = super().handle(event, now_s)
        state = self.state
        for pool, queue in state.queues.items():
            waiting = [load for key, load in state.loads.items()
                       if key.pool == pool and load.phase == "waiting" and key not in state.resting]  # fmt: skip
            assert len(queue) == len(waiting), "a load waits and is in no queue, or the other way round"
            came_back = sum(load.returns > 0 or load.is_replica for load in waiting)
            assert len(queue) <= state.limits.max_waiting + came_back, "the queue is not bounded"
        placed = Counter(key for entry in state.ledger.engines.values() for key in entry.assigned.values())
        assert all(count == 1 for count in placed.values()), "one load on two engines"
        for key, load in state.loads.items():
            if load.phase == "waiting":
                assert not load.engine and key not in placed
            else:
                assert state.ledger.engines[load.engine].assigned[key.digest] == key
        for entry in state.ledger.engines.values():
            assert entry.occupied <= entry.capacity, "an engine was promised more than it holds"
            assert entry.coming == sum(digest not in entry.residents for digest in entry.assigned), "places miscounted"
            assert len(entry.staging) <= state.limits.max_staging
        for key in state.interest.keys():  # noqa: SIM118  a method of the book, not of a dict
            assert key in state.loads or state.ledger.serving(*key), "somebody waits, and nothing is done about it"
        for command in commands:
            if not isinstance(command, UNADDRESSED):
                known = state.ledger.engines.get(command.engine)
                boots = {boots_before.get(command.engine), known.boot_id if known else None}
                assert command.boot_id in boots, "a command to a boot that nobody has heard of"
            if isinstance(command, Remove):
                entry = state.ledger.engines[command.engine]
                assert entry.residents[command.digest].in_flight == 0, "evicted in flight"
                leased = {LoadKey(pool, command.digest) for pool in entry.pools} & held_before
                assert not any(state.interest.is_held(key) for key in leased), "evicted under a lease"
        return commands
