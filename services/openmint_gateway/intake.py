"""Where a training request becomes a job, whether it came by the bus or by HTTP.

Nothing is kept of a request that is refused but its answer; of one that is accepted, policy, job and the fact of its
acceptance are committed together.
"""

import hashlib
from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

import orjson

from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.catalog import Catalog, Connection, bases, datasets, jobs, outbox_rows, quotas
from openmint.catalog.rows import Base, Job, JsonObject
from openmint.datasets import CanonicalDataset, canonical_dataset, completion_of
from openmint.errors import BadDataset, BadRequest, NotFound, OpenmintError, QuotaExceeded
from openmint.events import Cause, DatasetRef, JobRefused, TrainRequested
from openmint.events.training import MAX_INLINE_BYTES
from openmint.identifiers import check_alias
from openmint.row_forms import check_form
from openmint.training_targets import choose_targets, trained_paths
from openmint_gateway.dataset_store import put_dataset

SERVICE = "gateway"


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What intake allows."""

    max_rank: int
    open_jobs_per_tenant: int


@dataclass(frozen=True, slots=True)
class TrainMessage:
    """Who asks, and by which message. `token` is the last token of the subject, or the id of the HTTP request."""

    tenant: str
    token: str
    request_id: str


class Intake:
    """Checks requests and commits jobs."""

    def __init__(self, catalog: Catalog, store: Store, limits: IntakeLimits) -> None:
        self._catalog = catalog
        self._store = store
        self._limits = limits

    async def accept(self, message: TrainMessage, request: TrainRequested) -> tuple[Job, bool]:
        """Commit the job; True when this call made it. The same request again gives the same job.

        Raises: CallerMistake naming the field, StoreUnavailable, CatalogUnavailable.
        """
        async with self._catalog.connection() as conn:
            base = await self._check(conn, message, request)
            check_form(request.dataset.rows or [], request.recipe, "dataset.rows")
            training = await self._canonical(conn, message.tenant, request.dataset, "dataset")
            held_out_ref = request.evaluation.held_out
            held_out = None
            if held_out_ref is not None:
                check_form(held_out_ref.rows or [], "sft", "evaluation.held_out.rows")
                held_out = await self._canonical(conn, message.tenant, held_out_ref, "evaluation.held_out")
                _check_labels(request, held_out_ref)
        spec = _spec(request, message.tenant, training, held_out)
        async with self._catalog.transaction() as conn:
            job, is_new = await jobs.accept_job(
                conn,
                service=SERVICE,
                tenant=message.tenant,
                policy=request.policy,
                base=base.name,
                spec=spec,
                idempotency_key=request.idempotency_key,
                request_hash=_request_hash(spec),
                request_id=message.request_id,
            )
            if is_new:
                await self._check_quota(conn, message.tenant)
        return job, is_new

    async def refuse(self, message: TrainMessage, error: OpenmintError, body: bytes = b"") -> None:
        """Tell the tenant, on its own subject, why there is no job.

        A second delivery of the same message gives the same fact; a mended message gives another.
        """
        name = f"{message.tenant}/{message.request_id}/{error.code}/{hashlib.sha256(body).hexdigest()}"
        fact = JobRefused(
            event_id=uuid5(NAMESPACE_URL, name),
            causation_id=message.request_id,
            tenant=message.tenant,
            request_id=message.request_id,
            request_token=message.token,
            cause=Cause(code=error.code, detail=error.detail[:2000], field=error.field),
        )
        async with self._catalog.transaction() as conn:
            await outbox_rows.append(conn, SERVICE, fact)

    async def _check(self, conn: Connection, message: TrainMessage, request: TrainRequested) -> Base:
        if request.tenant is not None and request.tenant != message.tenant:
            raise BadRequest(
                f"the body says tenant {request.tenant!r}, the request comes from {message.tenant!r}", field="tenant"
            )
        base = await _find_base(conn, request.base)
        self._check_adapter(request, base)
        check_alias(request.promotion.alias)
        late = [step for step in request.training.revision_at_steps if not 1 <= step <= request.training.steps]
        if late:
            raise BadRequest(
                f"revision_at_steps {late[0]} is not between 1 and steps = {request.training.steps}",
                field="training.revision_at_steps",
            )
        return base

    def _check_adapter(self, request: TrainRequested, base: Base) -> None:
        if request.adapter.rank > self._limits.max_rank:
            raise BadRequest(
                f"rank {request.adapter.rank} is above {self._limits.max_rank}, the most that engines here can load",
                field="adapter.rank",
            )
        facts = BaseFacts.registered(base.name, base.digest, base.modules, base.config)
        choose_targets(request.adapter.targets, trained_paths(facts.modules, facts.experts))

    async def _canonical(self, conn: Connection, tenant: str, ref: DatasetRef, field: str) -> str:
        """The digest of the rows, which are in the store from here on."""
        if ref.digest is not None:
            try:
                return (await datasets.find_dataset(conn, tenant, ref.digest)).digest
            except NotFound as error:
                raise BadDataset(
                    f"tenant {tenant} has no dataset {ref.digest}; put it first", field=f"{field}.digest"
                ) from error
        dataset = canonical_dataset(ref.rows or [], field=f"{field}.rows")
        _check_inline_size(dataset, field)
        await put_dataset(conn, self._store, tenant, dataset)
        return dataset.digest

    async def _check_quota(self, conn: Connection, tenant: str) -> None:
        # Counted inside the transaction, with the new job: two requests at once can't both take the last place by much.
        limit = self._limits.open_jobs_per_tenant
        if await quotas.count_open_jobs(conn, tenant, limit + 1) > limit:
            raise QuotaExceeded(f"tenant {tenant} has {limit} open jobs, its limit; wait for one to end or cancel one")


async def _find_base(conn: Connection, name: str) -> Base:
    try:
        return await bases.find_base(conn, name)
    except NotFound as error:
        known = ", ".join(base.name for base in await bases.list_bases(conn)) or "none"
        raise NotFound(f"there is no base model {name!r}; known are: {known}", field="base") from error


def _check_inline_size(dataset: CanonicalDataset, field: str) -> None:
    if len(dataset.data) > MAX_INLINE_BYTES:
        raise BadDataset(
            f"{len(dataset.data)} bytes of inline rows are above the limit of {MAX_INLINE_BYTES}; put the data first"
            " (openmint data put) and give its digest",
            field=f"{field}.rows",
        )


def _check_labels(request: TrainRequested, ref: DatasetRef) -> None:
    if request.evaluation.scorer != "label" or ref.rows is None:
        return
    labels = frozenset(request.evaluation.labels)
    for number, row in enumerate(ref.rows, start=1):
        if completion_of(row) not in labels:
            raise BadDataset(
                f"held-out row {number} ends with none of evaluation.labels", field="evaluation.held_out.rows"
            )


def _spec(request: TrainRequested, tenant: str, training: str, held_out: str | None) -> JsonObject:
    """The request as the catalogue keeps it: datasets by digest alone."""
    spec = request.model_dump(mode="json", exclude_none=True, exclude={"idempotency_key"})
    spec["tenant"] = tenant
    spec["dataset"] = {"digest": training}
    if held_out is not None:
        spec["evaluation"]["held_out"] = {"digest": held_out}
    return spec


def _request_hash(spec: JsonObject) -> bytes:
    return hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).digest()
