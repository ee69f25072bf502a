"""Every error that openmint raises on purpose.

OpenmintError
├── CallerMistake                 the caller must change something; a retry of the same cannot help
│   ├── BadName                   400
│   ├── BadRequest                400  a field is wrong; `field` names it
│   ├── BadEvent                  400  a message on the bus can't be read
│   ├── BadDataset                400
│   ├── BadAdapter                422  an adapter that must not reach an engine
│   ├── Diverged                  422  a training gave non-finite numbers
│   ├── Unauthorised              401
│   ├── Forbidden                 403
│   ├── NotFound                  404  also another tenant's things
│   ├── Conflict                  409
│   │   ├── AliasConflict         409  the alias moved since it was read
│   │   ├── AliasFrozen           409
│   │   ├── IdempotencyConflict   409  same key, other content
│   │   └── NotEligible           409  the revision's state does not allow it
│   ├── TooLarge                  413
│   └── QuotaExceeded             429
├── TryAgain                      nothing is wrong with the request; `retry_after_s` says when
│   ├── Overloaded                503  a bounded queue is full
│   ├── LoadTimeout               503  a cold load did not finish in time
│   ├── NoEngine                  503  no engine of that base and pool is alive
│   ├── BusUnavailable            503
│   ├── CatalogUnavailable        503
│   └── StoreUnavailable          503
├── Quarantined                   503  the alias points to a quarantined revision
├── LoadFailed                    502  engines refused the adapter
├── EngineFailed                  502  an engine broke while answering
└── Stale                         a writer that was replaced; it must stop and write nothing more
    ├── Fenced                    another claim holds the job or revision
    └── StaleEpoch                another scheduler leads
"""

from typing import ClassVar


class OpenmintError(Exception):
    """Something in openmint went wrong."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, *, field: str | None = None, retry_after_s: float | None = None):
        self.detail = detail or (type(self).__doc__ or "").strip()
        self.field = field
        self.retry_after_s = retry_after_s
        super().__init__(self.detail)


class CallerMistake(OpenmintError):
    """The request can't be honoured as it is."""

    code = "bad_request"
    http_status = 400


class BadName(CallerMistake):
    """A name is not of the allowed form."""

    code = "bad_name"


class BadRequest(CallerMistake):
    """A field of the request is wrong."""

    code = "bad_request"


class BadEvent(CallerMistake):
    """A message can't be read as the event that its subject names."""

    code = "bad_event"


class BadDataset(CallerMistake):
    """The dataset is missing, empty or can't be read."""

    code = "bad_dataset"


class BadAdapter(CallerMistake):
    """The adapter is not one that may be loaded on its base model."""

    code = "bad_adapter"
    http_status = 422


class Diverged(CallerMistake):
    """The training of this policy gave numbers that are not finite."""

    code = "diverged"
    http_status = 422


class Unauthorised(CallerMistake):
    """The API key is missing, unknown, expired or revoked."""

    code = "unauthorised"
    http_status = 401


class Forbidden(CallerMistake):
    """The API key lacks the scope for this call."""

    code = "forbidden"
    http_status = 403


class NotFound(CallerMistake):
    """There is no such thing for this tenant."""

    code = "not_found"
    http_status = 404


class Conflict(CallerMistake):
    """The thing is not in the state that the request expects."""

    code = "conflict"
    http_status = 409


class AliasConflict(Conflict):
    """The alias has moved since its version was read."""

    code = "alias_conflict"


class AliasFrozen(Conflict):
    """The alias is frozen."""

    code = "alias_frozen"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before with other content."""

    code = "idempotency_conflict"


class NotEligible(Conflict):
    """The revision's state does not allow this."""

    code = "not_eligible"


class TooLarge(CallerMistake):
    """The body is larger than the limit."""

    code = "too_large"
    http_status = 413


class QuotaExceeded(CallerMistake):
    """The tenant's quota is used up."""

    code = "quota_exceeded"
    http_status = 429
    retryable = True


class TryAgain(OpenmintError):
    """The service can't answer now; the same request may succeed later."""

    code = "unavailable"
    http_status = 503
    retryable = True


class Overloaded(TryAgain):
    """A bounded queue is full."""

    code = "overloaded"


class LoadTimeout(TryAgain):
    """The adapter was not resident before the request's deadline."""

    code = "load_timeout"


class NoEngine(TryAgain):
    """No engine for this base model and pool is alive."""

    code = "no_engine"


class BusUnavailable(TryAgain):
    """The message bus does not answer."""

    code = "bus_unavailable"


class CatalogUnavailable(TryAgain):
    """The catalogue does not answer."""

    code = "catalog_unavailable"


class StoreUnavailable(TryAgain):
    """The object store does not answer."""

    code = "store_unavailable"


class Quarantined(OpenmintError):
    """The revision is quarantined; the base model is never served in its place."""

    code = "quarantined"
    http_status = 503


class LoadFailed(OpenmintError):
    """The adapter could not be made resident."""

    code = "load_failed"
    http_status = 502


class EngineFailed(OpenmintError):
    """The engine broke while answering."""

    code = "engine_failed"
    http_status = 502
    retryable = True


class Stale(OpenmintError):
    """This writer has been replaced and must stop."""

    code = "stale"
    http_status = 409


class Fenced(Stale):
    """Another claim holds this job or revision."""

    code = "fenced"


class StaleEpoch(Stale):
    """A newer scheduler leads this base model."""

    code = "stale_epoch"
