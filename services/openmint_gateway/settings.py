"""What can be set of the gateway, with units and reasons. Read once, in `app.py`."""

from pydantic import Field, SecretStr

from openmint.settings import CommonSettings


class GatewaySettings(CommonSettings):
    """Settings of the gateway; every one can be given as OPENMINT_<NAME>."""

    host: str = "127.0.0.1"
    port: int = 8080
    part: str = Field(default="gateway", description="Name of this process: in logs, and as waiter of cold loads")

    engine_key: SecretStr = Field(default=SecretStr(""), description="Bearer key of the engines' OpenAI routes")
    engine_read_key: SecretStr = Field(default=SecretStr(""), description="Key of the engine hosts' resident lists")
    key_pepper: SecretStr = Field(
        default=SecretStr(""), description="Mixed into the hashes of API keys; empty: the local stack's own secret"
    )

    serve_pool: str = "serve"
    wait_deadline_s: float = Field(
        default=120.0,
        description="Longest wait of a request for its first token; x-openmint-max-wait-s may ask for less",
    )
    silence_deadline_s: float = Field(
        default=300.0, description="An engine silent for so long is broken; a long prompt on a CPU engine takes minutes"
    )
    status_hold_s: float = Field(
        default=2.0, description="How long a waiting stream's status line is held, so that a real 503 is still possible"
    )
    comment_every_s: float = Field(default=2.0, description="Comment lines keep a waiting stream alive through proxies")

    waiting_per_tenant: int = Field(default=256, description="Requests of one tenant that may wait; more get 429")
    waiting_in_all: int = Field(default=2048, description="Requests that may wait in this process")
    tenant_weights: dict[str, float] = Field(
        default={}, description="Shares of tenants when engines are full, as JSON; 1 for those not named"
    )
    engine_margin: int = Field(
        default=2, ge=0, description="Sequences sent to an engine beyond those of its step: the next ones are at hand"
    )
    coherent_adapters: int = Field(
        default=8,
        ge=0,
        description="Different adapters on an engine at a time, at most its slots (max_loras); 0: no limit",
    )
    adapter_turns: bool = Field(
        default=True, description="Running adapters make way for one that has waited a tenth of what it may"
    )
    deadline_order: bool = Field(
        default=True,
        description="A tenant's requests by deadline and by who waits for the same adapter; else by arrival",
    )
    early_verdict: bool = Field(
        default=True, description="Refuse at once, with 429 and Retry-After, what would have to wait too long"
    )
    verdict_share: float = Field(
        default=0.4, gt=0, le=1, description="Of what a request may wait: an expected wait above this is refused"
    )

    names_cached: int = Field(default=200_000, description="Resolved names kept in memory")
    absent_names_cached: int = Field(default=50_000, description="Names known to be absent kept in memory")

    max_rank: int = Field(default=16, description="Highest rank that intake accepts: what the engines have slots for")
    open_jobs_per_tenant: int = Field(default=500, description="Accepted and running jobs of one tenant")
    upload_bytes_max: int = Field(default=64 * 1024 * 1024, description="Largest dataset that can be put")

    pool_connections: int = Field(default=8, description="Connections to the catalogue")
