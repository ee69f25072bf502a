"""The keeper's settings, prefix OPENMINT_."""

from openmint.settings import CommonSettings

DAY_S = 86_400.0


class KeeperSettings(CommonSettings):
    """Read once, in app.py."""

    keeper_every_s: float = 2.0
    """How often due steps and lapsed leases are looked for."""

    keeper_announce_after_s: float = 30.0
    """How long a step must have been due and untold before its fact is told again. Workers look by themselves every
    few seconds, so this only helps where their look fails or their patience is long."""

    keeper_sweep_every_s: float = 600.0
    """How often files, checkpoints and the inbox are swept; listing a store is the dearest thing done here."""

    keeper_orphan_age_s: float = DAY_S
    """How long a file must have been named by no row before it is deleted: longer than any upload and its commit."""

    keeper_checkpoint_keep_s: float = 3_600.0
    """How long the earlier checkpoints of an ended job stay; its last one stays for ever."""

    keeper_retired_keep_s: float = DAY_S
    """How long the files of a retired revision stay, for whoever retired the wrong one."""

    keeper_inbox_keep_s: float = 8 * DAY_S
    """How long a handled event is remembered: a day longer than the stream EVENTS keeps it."""

    keeper_outbox_warn_s: float = 30.0
    """From when on a fact that waits for its service's relay is worth a warning."""
