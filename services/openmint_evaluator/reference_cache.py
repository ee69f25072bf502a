"""Reference logprobs that were computed before: the base's and production's are asked for in every evaluation."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from openmint_evaluator.probes import Probe
from openmint_evaluator.reference_client import ReferenceChild

MAX_ENTRIES = 128
"""Of 512 numbers each: some megabytes."""


class ReferenceLogprobs:
    """Logprobs of one revision (or the base) on one set of probes, computed once."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, float, str], list[float]] = OrderedDict()

    async def compute(
        self,
        child: ReferenceChild,
        base_digest: str,
        revision: tuple[str, Path] | None,
        probes: Sequence[Probe],
        probe_digest: str,
        scales: Sequence[float] = (1.0,),
    ) -> list[list[float]]:
        """Per scale, the logprobs of all probes one after the other. `revision` is (digest, folder), None the base.

        Raises: as ReferenceChild.
        """
        digest = "" if revision is None else revision[0]
        key: Callable[[float], tuple[str, str, float, str]] = lambda scale: (base_digest, digest, scale, probe_digest)  # noqa: E731
        missing = [scale for scale in scales if key(scale) not in self._known]
        if missing:
            folder = None if revision is None else revision[1]
            found = await child.logprobs(folder, [probe.token_ids for probe in probes], missing)
            for scale, values in zip(missing, found, strict=True):
                self._known[key(scale)] = values
        results = [self._known[key(scale)] for scale in scales]
        for scale in scales:
            self._known.move_to_end(key(scale))
        while len(self._known) > MAX_ENTRIES:
            self._known.popitem(last=False)
        return results
