"""Every bound and time of the core, each with its reason."""

from dataclasses import dataclass, field

ENGINES_PER_QUEUE = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What the core allows."""

    max_waiting: int = 2000
    """Loads that wait in a pool of up to `ENGINES_PER_QUEUE` engines, and in proportion in a larger one. At some 10 ms
    a load they take five seconds, and with the slow loads of a large model longer than anybody waits."""

    tenant_share: float = 0.5
    """The part of `max_waiting` that one tenant may take: the other half is always open to others."""

    max_staging: int = 8
    """Stages in flight per engine: fetches overlap, but the host packs on few cores."""

    max_attach_batch: int = 32
    """Attaches in one gap: at 6 ms each, a running stream pauses for at most 0.2 s."""

    attach_share: float = 0.5
    """The part of a busy engine's time that attaching what is waited for may take: its streams get the other half."""

    prefetch_attach_share: float = 0.1
    """The same for what nobody waits for yet."""

    replicates: bool = True
    """Whether hot revisions get further copies."""

    predicts: bool = False
    """Whether revisions that are asked for at regular times are loaded before the next one."""

    predicted_lead_s: float = 5.0
    """So long before the predicted request: a stage from a slow store, and some jitter of the caller."""

    busy_look_s: float = 1.0
    """The oldest look at an engine that is at least half full of requests."""

    unwanted_per_min: float = 0.25
    """A prefetch pushes out only what is wanted less often than this: with the half-life, twice in the last minutes."""

    demand_half_life_s: float = 300.0
    """Demand half forgotten: long enough to see what is wanted once in minutes, which is what evictions are about."""

    max_pause_s: float = 0.25
    """How long the streams of a busy engine may stand still for one batch of attaches."""

    max_staged: int = 256
    """Staged copies per engine's machine, beyond which the longest unused is dropped."""

    max_tries: int = 4
    """Engines asked before a load fails: enough for one that dies and one that refuses, with some to spare."""

    lapse_s: float = 7.0
    """Interest without renewal: three renewals of 2 s missed, and one second for the bus."""

    silence_s: float = 5.0
    """An engine without heartbeat, sent every second, for so long is gone."""

    ageing_s: float = 10.0
    """A waiting load rises one class after each of these, so that a prefetch is not postponed for ever."""

    settle_s: float = 3.0
    """A new resident is not evicted for so long: whoever waited for it must be able to use it."""

    evaluation_keep_s: float = 10.0
    """A revision that only an evaluation asked for leaves so long after its last lease was taken: the steps of one
    evaluation follow each other within seconds, and a promotion by rule comes with the verdict."""

    warm_s: float = 900.0
    """How long the revisions before and after an alias move stay warm: a rollback comes within minutes."""

    warm_share: float = 0.5
    """The part of an engine's capacity that warm revisions may keep from others; beyond it, the oldest move goes."""

    prefetch_patience_s: float = 120.0
    """A prefetch that found no engine for so long is dropped; a request will ask again."""

    look_s: float = 5.0
    """The oldest look at an engine that decisions rest on when its heartbeats tell nothing new."""

    fresh_look_s: float = 0.5
    """Nothing is evicted on the word of an older look: what was idle then may be in use now."""

    look_timeout_s: float = 4.0
    """A look that got no answer for so long is asked again."""

    retry_delay_s: float = 0.25
    """Before a load that came back is tried again; doubled each time."""

    max_retry_delay_s: float = 4.0
    """The longest of these rests: a deadline has room for several."""

    remove_timeout_s: float = 5.0
    """How long an engine waits for the last request on an adapter that is being removed."""

    remove_again_s: float = 2.0
    """Before an adapter that was still in use is chosen for removal again."""

    stuck_s: float = 2.0
    """A staged load that got no room on its engine for so long may go to another."""

    refusal_memory_s: float = 30.0
    """A revision found bad is answered from memory for so long."""

    refusal_memory: int = 10_000
    """Revisions found bad that are remembered."""

    wanted_memory: int = 50_000
    """Revisions whose tenant and size are remembered after the last request for them."""

    min_retry_after_s: float = 1.0
    """The smallest Retry-After: sooner, nothing will have changed."""

    tenant_weights: dict[str, float] = field(default_factory=dict[str, float])
    """A tenant's share of the loads relative to 1."""

    def most_waiting(self, engines: int) -> int:
        """Loads that may wait in a pool of so many engines."""
        return self.max_waiting * max(1, -(-engines // ENGINES_PER_QUEUE))
