"""Settings of the scheduler, read once from `OPENMINT_*` in `app.py`."""

from pydantic import Field

from openmint.settings import CommonSettings
from openmint_scheduler.eviction import EVICTIONS
from openmint_scheduler.limits import Limits
from openmint_scheduler.ordering import ORDERINGS
from openmint_scheduler.placement import PLACEMENTS


class SchedulerSettings(CommonSettings):
    """One process may lead any number of base models; any number of processes may stand by."""

    bases: str = Field(default="", description="Base models to lead, with commas; empty: those that engines tell of")
    engine_control_key: str = Field(default="", repr=False, description="Key of the engine hosts' control ports")

    placement: str = Field(default="warmest", description=f"One of {', '.join(PLACEMENTS)}")
    ordering: str = Field(default="fair", description=f"One of {', '.join(ORDERINGS)}")
    eviction: str = Field(default="cheapest_to_lose", description=f"One of {', '.join(EVICTIONS)}")
    max_waiting_loads: int = Field(default=2000, ge=1, description="Per base and pool; beyond it a request is refused")
    max_staging_per_engine: int = Field(default=8, ge=1)
    replicates: bool = Field(default=True, description="Whether hot revisions get further copies")
    predicts: bool = Field(
        default=False, description="Whether a policy that is asked for at regular times is loaded before the next one"
    )
    max_attach_batch: int = Field(default=32, ge=1, description="Adapters attached in one gap between steps")
    attach_share: float = Field(
        default=0.5, gt=0, le=1, description="Part of a busy engine's time that attaching may take; 1: no bound"
    )
    warm_s: float = Field(default=900.0, ge=0, description="How long both sides of an alias move stay warm")
    prefetch_aliases: str = Field(default="production,canary", description="Moves of these are loaded for in advance")
    stage_timeout_s: float = Field(default=120.0, gt=0, description="100 MB from a slow store, checked and packed")
    attach_timeout_s: float = Field(default=30.0, gt=0, description="A batch of 32 waits for a step and takes 0.2 s")

    metrics_port: int = Field(default=0, ge=0, description="Port of the Prometheus endpoint; 0: none")

    @property
    def base_names(self) -> tuple[str, ...]:
        """The bases named in the settings."""
        return tuple(name.strip() for name in self.bases.split(",") if name.strip())

    @property
    def prefetched(self) -> frozenset[str]:
        """The aliases whose moves are loaded for."""
        return frozenset(name.strip() for name in self.prefetch_aliases.split(",") if name.strip())

    def limits(self) -> Limits:
        """The core's limits, with what is set here."""
        return Limits(
            max_waiting=self.max_waiting_loads,
            max_staging=self.max_staging_per_engine,
            max_attach_batch=self.max_attach_batch,
            attach_share=self.attach_share,
            replicates=self.replicates,
            predicts=self.predicts,
            warm_s=self.warm_s,
        )
