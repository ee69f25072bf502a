"""Names, digests and ids: the only place that parses or prints them.

A *name* is a token that may stand in a NATS subject: `[a-z0-9_-]{1,63}`. A model name is what a caller writes in
the `model` field of a request; it always names one policy and a way to pick a revision, or a base model.
"""

import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

from openmint.errors import BadName

NAME_PATTERN = r"^[a-z0-9_-]{1,63}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A tenant, policy, alias, base model, engine or pool: one token of a subject."""

Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
"""`sha256:` and 64 lower-case hexadecimal characters."""

_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)
_NUMBER = re.compile(r"^[1-9][0-9]{0,9}$")
_STEP = re.compile(r"^step-(0|[1-9][0-9]{0,9})$")


def check_name(value: str, what: str = "name") -> str:
    """Return `value` if it is a name.

    Raises: BadName, naming `what`, when it is not.
    """
    if not _NAME.fullmatch(value):
        raise BadName(f"{what} {value[:80]!r} is not a name: use 1 to 63 of a-z, 0-9, _ and -")
    return value


def digest_from_hex(hexadecimal: str) -> str:
    """`sha256:…` from 64 hexadecimal characters. Raises: BadName."""
    return check_digest(f"sha256:{hexadecimal}")


def digest_from_bytes(raw: bytes) -> str:
    """`sha256:…` from the 32 bytes that the catalogue keeps. Raises: BadName."""
    return check_digest(f"sha256:{raw.hex()}")


def digest_bytes(digest: str) -> bytes:
    """The 32 bytes of a digest, as the catalogue keeps them. Raises: BadName."""
    return bytes.fromhex(check_digest(digest).removeprefix("sha256:"))


def check_digest(value: str) -> str:
    """Return `value` if it is a digest. Raises: BadName."""
    if not _DIGEST.fullmatch(value):
        raise BadName(f"{value[:80]!r} is not a digest: write sha256: and 64 hexadecimal characters")
    return value


def new_id() -> uuid.UUID:
    """A UUID version 7: ordered by the time of its making, so that index pages stay warm (RFC 9562)."""
    milliseconds = time.time_ns() // 1_000_000
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76
    value |= ((random_bits >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random_bits & ((1 << 62) - 1)
    return uuid.UUID(int=value)


@dataclass(frozen=True, slots=True)
class PolicyName:
    """`tenant/name`, the way a policy is addressed."""

    tenant: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "PolicyName":
        """Read `tenant/name`. Raises: BadName."""
        tenant, slash, name = text.partition("/")
        if not slash:
            raise BadName(f"{text[:80]!r} is not a policy: write tenant/name")
        return cls(check_name(tenant, "tenant"), check_name(name, "policy"))

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True)
class ByAlias:
    """Pick the revision that an alias points to."""

    alias: str

    def __str__(self) -> str:
        return self.alias


@dataclass(frozen=True, slots=True)
class ByNumber:
    """Pick the revision with this running number in its policy."""

    number: int

    def __str__(self) -> str:
        return str(self.number)


@dataclass(frozen=True, slots=True)
class ByStep:
    """Pick the newest revision made at this optimizer step."""

    step: int

    def __str__(self) -> str:
        return f"step-{self.step}"


@dataclass(frozen=True, slots=True)
class ByDigest:
    """Pick the revision with exactly these bytes."""

    digest: str

    def __str__(self) -> str:
        return self.digest


Selector = ByAlias | ByNumber | ByStep | ByDigest

DEFAULT_ALIAS = "production"


def parse_selector(text: str) -> Selector:
    """Read what stands after the `@`: an alias, `7`, `step-400` or `sha256:…`. Raises: BadName."""
    if text.startswith("sha256:"):
        return ByDigest(check_digest(text))
    if _NUMBER.fullmatch(text):
        return ByNumber(int(text))
    step = _STEP.fullmatch(text)
    if step:
        return ByStep(int(step.group(1)))
    return ByAlias(check_name(text, "alias"))


def check_alias(value: str) -> str:
    """Return `value` if it can name an alias: a name that can't be read as a number, a step or a digest.

    Raises: BadName.
    """
    if not isinstance(parse_selector(value), ByAlias):
        raise BadName(f"{value[:80]!r} can't be an alias: it reads as a number, a step or a digest")
    return value


@dataclass(frozen=True, slots=True)
class PolicyModel:
    """A model name that asks for a revision of a policy."""

    policy: PolicyName
    selector: Selector

    def __str__(self) -> str:
        return f"{self.policy}@{self.selector}"


@dataclass(frozen=True, slots=True)
class BaseModelName:
    """A model name that asks for a base model with no adapter."""

    base: str

    def __str__(self) -> str:
        return self.base


def parse_model(text: str) -> PolicyModel | BaseModelName:
    """Read the `model` field of a request.

    `smollm2-135m` is a base model; `tenant/policy` means `tenant/policy@production`; after `@` stands an alias, a
    number, `step-<n>` or a digest.

    Raises: BadName.
    """
    if "/" not in text:
        return BaseModelName(check_name(text, "base model"))
    policy, at, selector = text.partition("@")
    return PolicyModel(PolicyName.parse(policy), parse_selector(selector) if at else ByAlias(DEFAULT_ALIAS))
