"""Policies and their revisions and aliases: look, promote, roll back, freeze, thaw, waive, release."""

import asyncio
from typing import Annotated

import typer

from openmint.answers import AliasAnswer, JsonObject, MoveAnswer, PolicyAnswer, RevisionAnswer
from openmint.cli.connection import connect
from openmint.cli.output import Json, print_json, say, short, table
from openmint.errors import NotFound

Alias = Annotated[str, typer.Option(help="The alias.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the alias's history.")]
Expected = Annotated[int | None, typer.Option(help="The alias version that you saw; refuse if it has moved since.")]


def add_to(app: typer.Typer) -> None:
    """Put these commands into the application."""
    for command in (policies, revisions, promote, rollback, freeze, thaw, waive, release):
        app.command()(command)


def policies(json: Json = False) -> None:
    """List policies and where their aliases point."""
    found = asyncio.run(_policies())
    if json:
        print_json([{"policy": policy, "aliases": aliases} for policy, aliases in found])
        return
    table(
        ("model", "base", "aliases", "made"),
        [
            (
                f"{policy.tenant}/{policy.name}",
                policy.base,
                " ".join(f"{a.alias}={a.number}{' (frozen)' if a.frozen else ''}" for a in aliases) or None,
                f"{policy.created_at:%F %T}",
            )
            for policy, aliases in found
        ],
    )


def revisions(
    policy: str,
    report: Annotated[str | None, typer.Option(help="Show the gate's report of this revision: a number or id.")] = None,
    json: Json = False,
) -> None:
    """List the revisions of a policy, or show one's report."""
    if report is not None:
        found = asyncio.run(_report(policy, report))
        print_json(found) if json else _show_report(found)
        return
    items = asyncio.run(_revisions(policy))
    if json:
        print_json(items)
        return
    table(
        ("number", "digest", "step", "state", "why", "made"),
        [(r.number, short(r.digest), r.step, r.state, r.reason, f"{r.created_at:%F %T}") for r in items],
    )


def promote(
    policy: str,
    revision: Annotated[str, typer.Argument(help="A number, step-<n>, sha256:…, an id or another alias.")],
    alias: Alias = "production",
    expected_version: Expected = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Let an alias point to a revision that passed the gate."""

    async def move() -> MoveAnswer:
        async with connect() as client:
            return await client.promote(policy, revision, alias=alias, expected_version=expected_version, reason=reason)

    _show_move(asyncio.run(move()), json)


def rollback(
    policy: str,
    to: Annotated[int | None, typer.Option(help="The number to go back to; the one before if left out.")] = None,
    alias: Alias = "production",
    expected_version: Expected = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Move an alias back in one call."""

    async def move() -> MoveAnswer:
        async with connect() as client:
            return await client.roll_back(
                policy, alias=alias, to_number=to, expected_version=expected_version, reason=reason
            )

    _show_move(asyncio.run(move()), json)


def freeze(policy: str, alias: Alias = "production", reason: Reason = "", json: Json = False) -> None:
    """Let nobody move an alias."""

    async def move() -> MoveAnswer:
        async with connect() as client:
            return await client.freeze(policy, alias, reason=reason)

    _show_move(asyncio.run(move()), json)


def thaw(policy: str, alias: Alias = "production", reason: Reason = "", json: Json = False) -> None:
    """Let an alias be moved again."""

    async def move() -> MoveAnswer:
        async with connect() as client:
            return await client.thaw(policy, alias, reason=reason)

    _show_move(asyncio.run(move()), json)


def waive(
    policy: str,
    revision: str,
    reason: Annotated[str, typer.Option(help="Why it may pass all the same; kept with your key's name.")],
    json: Json = False,
) -> None:
    """Let a rejected revision pass on your word."""

    async def decide() -> RevisionAnswer:
        async with connect() as client:
            return await client.waive(policy, revision, reason)

    waived = asyncio.run(decide())
    if json:
        print_json(waived)
    else:
        say(f"revision {waived.number} of {policy} is {waived.state}: {waived.reason}")


def release(
    policy: str,
    revision: Annotated[str, typer.Argument(help="Its number, id or digest; a name can't reach what is quarantined.")],
    reason: Annotated[str, typer.Option(help="Why it is good after all; kept with your key's name.")],
    json: Json = False,
) -> None:
    """Put a quarantined revision back to where it was."""

    async def decide() -> RevisionAnswer:
        async with connect() as client:
            for known in (await client.revisions(policy, limit=500)).items:
                if revision in (str(known.number), str(known.revision_id), known.digest):
                    return await client.release(policy, known.revision_id, reason)
            raise NotFound(f"policy {policy} has no revision {revision}")

    released = asyncio.run(decide())
    if json:
        print_json(released)
    else:
        say(f"revision {released.number} of {policy} is {released.state}: {released.reason}")


def _show_move(move: MoveAnswer, json: bool) -> None:
    if json:
        print_json(move)
        return
    if not move.changed:
        say(f"{move.policy}@{move.alias} is at revision {move.number} already (version {move.alias_version})")
        return
    before = f" from revision {move.previous_number}" if move.previous_number is not None else ""
    frozen = ", frozen" if move.frozen else ""
    digest = short(move.digest)
    say(f"{move.policy}@{move.alias}{before} to revision {move.number} {digest} (version {move.alias_version}{frozen})")


def _show_report(report: JsonObject) -> None:
    summary = report.get("summary") or report.get("verdict")
    if isinstance(summary, str):
        say(summary)
    lines = report.get("lines")
    for line in lines if isinstance(lines, list) else []:
        say(f"  {line}")
    if not isinstance(summary, str):
        print_json(report)


async def _policies() -> list[tuple[PolicyAnswer, list[AliasAnswer]]]:
    async with connect() as client:
        found = (await client.policies(limit=500)).items
        return [(policy, await client.aliases(policy.name)) for policy in found]


async def _revisions(policy: str) -> list[RevisionAnswer]:
    async with connect() as client:
        return (await client.revisions(policy, limit=500)).items


async def _report(policy: str, selector: str) -> JsonObject:
    async with connect() as client:
        evaluations = await client.evaluations(policy, selector)
        if not evaluations:
            raise NotFound(f"revision {selector} of {policy} has not been evaluated yet")
        return await client.report(evaluations[-1].evaluation_id)
