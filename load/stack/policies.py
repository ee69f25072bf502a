"""The policies of a race: who owns them, and what each side calls them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that the catalogue knows and that has one revision."""

    tenant: str
    name: str

    @property
    def model(self) -> str:
        """What our gateway is asked for."""
        return f"{self.tenant}/{self.name}"

    @property
    def stock_name(self) -> str:
        """What a stock server is asked for: a folder's name."""
        return f"{self.tenant}--{self.name}"


@dataclass(frozen=True, slots=True)
class Shelved:
    """A policy whose revision lies in the store."""

    policy: Policy
    digest: str
    adapter_bytes: int
    rank: int
    alpha: float


def make_policies(count: int, tenants: int = 8, prefix: str = "p") -> list[Policy]:
    """`prefix`0 … over tenants t0 … by turns."""
    return [Policy(f"t{number % tenants}", f"{prefix}{number}") for number in range(count)]
