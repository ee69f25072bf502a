"""The adapters of a simulated engine, and its slots: which of them a step can use without copying anything first."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(slots=True)
class SimulatedAdapter:
    """An adapter on a simulated engine."""

    digest: str
    name: str
    in_flight: int = 0
    served: int = 0
    is_draining: bool = False
    is_proven: bool = False


class SimulatedSlots:
    """A few places; the adapter that was put there longest ago makes room for another."""

    def __init__(self, slots: int) -> None:
        self._places: list[str | None] = [None] * slots
        self._order: dict[str, None] = {}

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """The adapter name in each slot."""
        return tuple(self._places)

    def put(self, name: str, in_use: Collection[str] = ()) -> bool:
        """Give the adapter a slot; False when each one holds an adapter that is `in_use`."""
        if name in self._order:
            self._order[name] = self._order.pop(name)
            return True
        if None in self._places:
            place = self._places.index(None)
        else:
            idle = next((each for each in self._order if each not in in_use), None)
            if idle is None:
                return False
            place = self._places.index(idle)
            del self._order[idle]
        self._places[place] = name
        self._order[name] = None
        return True

    def drop(self, name: str) -> None:
        """Empty the adapter's slot, if it has one."""
        if name in self._order:
            del self._order[name]
            self._places[self._places.index(name)] = None

    def clear(self) -> None:
        """Empty all of them."""
        self._places = [None] * len(self._places)
        self._order.clear()
