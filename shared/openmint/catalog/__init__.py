"""The catalogue: the truth about policies, jobs, revisions and aliases, in Postgres.

One file per table family, one query per function; every function takes a connection first.
"""

from openmint.catalog.database import Catalog, Connection
from openmint.catalog.migrate import migrate

__all__ = ["Catalog", "Connection", "migrate"]
