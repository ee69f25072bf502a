"""Import of a foreign PEFT folder as a revision of a policy: `python -m openmint_exporter.import_folder --help`.

The folder is checked before anything of it is written down, so a bad one leaves no trace but its refusal.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from openmint.adapters.facts import AdapterLimits
from openmint.adapters.inspection import Inspector
from openmint.adapters.revision_files import put_revision_folder
from openmint.adapters.signing import SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.catalog import bases, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision
from openmint.errors import OpenmintError
from openmint.identifiers import PolicyName
from openmint_exporter.export import export_foreign
from openmint_exporter.settings import ExporterSettings
from openmint_exporter.worker import SERVICE

LEASE_S = 120.0
"""An import whose process dies fails after this long: nobody else has the folder."""


async def import_folder(
    catalog: Catalog,
    store: Store,
    key: SigningKey,
    policy: PolicyName,
    base: str,
    source: Path,
    *,
    accepted_base_names: tuple[str, ...] = (),
    owner: str = "import",
) -> Revision:
    """Check a PEFT folder, store it as a revision of `policy` and commit it as exported; its gate comes next.

    `accepted_base_names` are other names that the folder's configuration may give this base, as on a hub.
    Raises: BadAdapter naming the culprit; NotFound for an unknown base; Conflict when the policy has another base;
    StoreUnavailable; CatalogUnavailable.
    """
    began = time.perf_counter()
    async with catalog.connection() as connection:
        row = await bases.find_base(connection, base)
    facts = BaseFacts.registered(row.name, row.digest, row.modules, row.config)
    limits = AdapterLimits(accepted_base_names=accepted_base_names)
    with tempfile.TemporaryDirectory(prefix="openmint-import-") as temporary:
        scratch, folder = Path(temporary) / "foreign", Path(temporary) / "revision"
        scratch.mkdir()
        folder.mkdir()
        async with Inspector() as inspector:
            signed = await export_foreign(source, facts, key, inspector, scratch, folder, limits)
        async with catalog.connection() as connection:
            revision = await revisions.begin_import(
                connection, SERVICE, policy.tenant, policy.name, base, source.name[:80], owner, LEASE_S
            )
        await put_revision_folder(store, signed.digest, folder)
    async with catalog.transaction() as connection:
        return await revisions.commit_export(
            connection,
            revision.revision_id,
            revision.fence,
            signed.digest,
            signed.manifest.as_json(),
            signed.facts.adapter_bytes,
            (time.perf_counter() - began) * 1e3,
            service=SERVICE,
        )


async def _import(arguments: argparse.Namespace) -> int:
    settings = ExporterSettings().resolve()
    catalog = await Catalog.open(settings.postgres_dsn, max_size=2, application="openmint-import")
    try:
        revision = await import_folder(
            catalog,
            Store.open(settings.store_url),
            SigningKey.load_or_create(settings.exporter_key_folder or keys_folder(settings.state_dir)),
            PolicyName.parse(arguments.policy),
            arguments.base,
            arguments.folder,
            accepted_base_names=tuple(arguments.accept_base_name),
            owner=f"{socket.gethostname()}-{os.getpid()}",
        )
    except OpenmintError as error:
        print(json.dumps({"error": error.code, "detail": error.detail, "field": error.field}), file=sys.stderr)
        return 1
    finally:
        await catalog.close()
    print(json.dumps({"revision_id": str(revision.revision_id), "number": revision.number, "digest": revision.digest}))
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=import_folder.__doc__)
    parser.add_argument("policy", help="tenant/name")
    parser.add_argument("folder", type=Path, help="PEFT folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--base", required=True, help="name of the base model")
    parser.add_argument("--accept-base-name", action="append", default=[], help="what the folder may call this base")
    return asyncio.run(_import(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
