"""Base models that may be trained on and asked."""

from fastapi import APIRouter

from openmint_gateway.control.parts import Answer, Parts, Reader

router = APIRouter(prefix="/v1/bases", tags=["bases"])


class BaseAnswer(Answer):
    """A base model. `targets` are the linears that an adapter may sit on."""

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
            targets=sorted({path.rpartition(".")[2] for path in base.modules}),
        )
        for base in (await parts.bases.all()).values()
    ]
