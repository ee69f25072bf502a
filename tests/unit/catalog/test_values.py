import pytest

from openmint.catalog.keys import hash_secret
from openmint.catalog.migrate import migration_files
from openmint.catalog.rows import dump_json, load_json


def test_the_pepper_changes_the_hash() -> None:
    assert hash_secret("secret", b"a") != hash_secret("secret", b"b")
    assert len(hash_secret("secret")) == 32


def test_json_for_the_catalogue_holds_no_nan() -> None:
    assert load_json(dump_json({"a": [1, None]})) == {"a": [1, None]}
    assert load_json(None) is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"loss": float("nan")})


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(name.split("_")[0]) for name, _ in migration_files()]
    assert numbers == list(range(1, len(numbers) + 1))
