"""What the routes work with, and who calls them."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from openmint.adapters.store import Store
from openmint.bus.connection import Bus
from openmint.catalog import Catalog
from openmint_gateway.base_models import BaseModels
from openmint_gateway.fleet import Fleet
from openmint_gateway.intake import Intake
from openmint_gateway.key_ring import Caller, KeyRing
from openmint_gateway.metrics import GatewayMetrics
from openmint_gateway.resolver import Resolver
from openmint_gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class ControlParts:
    """Made once in `app.py`."""

    settings: GatewaySettings
    catalog: Catalog
    store: Store
    bus: Bus
    intake: Intake
    keys: KeyRing
    resolver: Resolver
    bases: BaseModels
    fleet: Fleet
    metrics: GatewayMetrics
    pepper: bytes


_BEARER = HTTPBearer(auto_error=False, scheme_name="api_key", description="An API key: id.secret")

Item = TypeVar("Item")


class Answer(BaseModel):
    """A part of an answer; read from the catalogue's rows."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next: str | None = Field(default=None, description="Give it as `after` for the next page; null on the last one")


class StrictBody(BaseModel):
    """A body: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")


def _parts(request: Request) -> ControlParts:
    return request.app.state.parts


Parts = Annotated[ControlParts, Depends(_parts)]
Limit = Annotated[int, Query(ge=1, le=500, description="Items per page")]


def _caller_with(scope: str) -> Callable[..., Coroutine[Any, Any, Caller]]:
    async def authenticate(
        request: Request, parts: Parts, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        caller = await parts.keys.authenticate(request.headers.get("authorization", ""))
        caller.need(scope)
        return caller

    return authenticate


Reader = Annotated[Caller, Depends(_caller_with("read"))]
Trainer = Annotated[Caller, Depends(_caller_with("train"))]
Promoter = Annotated[Caller, Depends(_caller_with("promote"))]
Admin = Annotated[Caller, Depends(_caller_with("admin"))]
