"""Where things lie in the store. Nothing else makes or reads these keys."""

from uuid import UUID

from openmint.identifiers import check_digest, check_name

REVISIONS = "revisions/"
CHECKPOINTS = "checkpoints/"
DATASETS = "datasets/"
EVALUATIONS = "evaluations/"


def dataset_key(tenant: str, digest: str) -> str:
    """Rows in canonical JSON Lines, named by their sha256. Raises: BadName."""
    return f"{DATASETS}{check_name(tenant, 'tenant')}/{_hex(digest)}.jsonl"


def checkpoint_key(job_id: UUID, fence: int, step: int) -> str:
    """A checkpoint. The claim's fence is in it, so that no claim can overwrite another's file."""
    return f"{CHECKPOINTS}{job_id}/{fence}/step-{step}.safetensors"


def revision_prefix(digest: str) -> str:
    """The folder of a revision, with its slash. Raises: BadName."""
    return f"{REVISIONS}{_hex(digest)}/"


def revision_key(digest: str, file_name: str) -> str:
    """One file of a revision. Raises: BadName."""
    return revision_prefix(digest) + file_name


def evaluation_key(evaluation_id: UUID, file_name: str = "report.json") -> str:
    """A file of an evaluation."""
    return f"{EVALUATIONS}{evaluation_id}/{file_name}"


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")
