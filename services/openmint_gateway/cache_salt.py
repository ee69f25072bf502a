"""Prefix caches of engines are shared by all tenants; the salt keeps what one tenant has cached invisible to others."""

import hashlib
import hmac


class CacheSalts:
    """A salt per tenant, derived from a key of this installation, so that no tenant can make up another's."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._salts: dict[str, str] = {}

    def of(self, tenant: str) -> str:
        """The same in every gateway process."""
        salt = self._salts.get(tenant)
        if salt is None:
            salt = hmac.new(self._key, b"cache-salt:" + tenant.encode(), hashlib.sha256).hexdigest()
            self._salts[tenant] = salt
        return salt
