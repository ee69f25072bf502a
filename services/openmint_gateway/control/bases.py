"""Base models that may be trained on and asked."""

from fastapi import APIRouter

from openmint.bases import BaseFacts
from openmint.catalog.rows import Base
from openmint.training_targets import choose_targets, trained_paths
from openmint_gateway.control.parts import Answer, Parts, Reader

router = APIRouter(prefix="/v1/bases", tags=["bases"])


class BaseAnswer(Answer):
    """A base model. `targets` are what a policy may be trained on."""

    name: str
    digest: str
    targets: list[str]


@router.get("")
async def list_bases(parts: Parts, _: Reader) -> list[BaseAnswer]:
    """All base models, by name."""
    return [
        BaseAnswer(
            name=base.name,
            digest=base.digest,
            targets=_targets(base),
        )
        for base in (await parts.bases.all()).values()
    ]


def _targets(base: Base) -> list[str]:
    facts = BaseFacts.registered(base.name, base.digest, base.modules, base.config)
    return list(choose_targets(None, trained_paths(facts.modules, facts.experts)))
