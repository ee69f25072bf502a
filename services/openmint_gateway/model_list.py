"""`/v1/models` in OpenAI's form: the base models, and one entry per policy of the caller's tenant."""

from urllib.parse import parse_qs

from openmint.catalog import Catalog, policies
from openmint.catalog.rows import Base, Policy
from openmint.errors import NotFound
from openmint.identifiers import PolicyModel, parse_model
from openmint_gateway.asgi_input import Scope
from openmint_gateway.base_models import BaseModels
from openmint_gateway.problems import JsonObject
from openmint_gateway.resolver import Resolver

PAGE = 500


class ModelList:
    """What may stand in the `model` field."""

    def __init__(self, catalog: Catalog, bases: BaseModels, resolver: Resolver) -> None:
        self._catalog = catalog
        self._bases = bases
        self._resolver = resolver

    async def page(self, tenant: str, scope: Scope) -> JsonObject:
        """Base models first, then policies by name; `?after=<policy name>` gives the next page."""
        after = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("after", [""])[0][:63]
        async with self._catalog.connection() as conn:
            found = await policies.list_policies(conn, tenant, after or None, PAGE)
        known = [] if after else [_base_entry(base) for base in (await self._bases.all()).values()]
        return {
            "object": "list",
            "data": known + [_policy_entry(policy) for policy in found],
            "has_more": len(found) == PAGE,
        }

    async def one(self, tenant: str, name: str) -> JsonObject:
        """Any name that `model` may hold. Raises: NotFound, BadName."""
        parsed = parse_model(name)
        if not isinstance(parsed, PolicyModel):
            return _base_entry(await self._bases.find(parsed.base))
        if parsed.policy.tenant != tenant:
            raise NotFound(f"there is no policy {parsed.policy}", field="model")
        revision = (await self._resolver.resolve(parsed)).revision
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": tenant,
            "parent": revision.base,
            "revision": revision.digest,
            "number": revision.number,
            "step": revision.step,
        }


def _base_entry(base: Base) -> JsonObject:
    return {"id": base.name, "object": "model", "created": 0, "owned_by": "openmint", "parent": None}


def _policy_entry(policy: Policy) -> JsonObject:
    return {
        "id": f"{policy.tenant}/{policy.name}",
        "object": "model",
        "created": int(policy.created_at.timestamp()),
        "owned_by": policy.tenant,
        "parent": policy.base,
    }
