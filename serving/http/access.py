"""Who may write: the key for events and administration, and without one only this machine's own pages.

There are no users or sessions. How often one client may ask is for the proxy in front (`serving/deploy/nginx.conf`).
Without a key the service listens on this machine alone; other pages in its browser are kept out by Origin and Host,
which a browser cannot forge.
"""

import hmac
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers

from serving.http.problems import ProblemError
from serving.settings import is_loopback

# By prefix, since a route may match more than its own text ("/v1/events%0A" reaches /v1/events).
PROTECTED = ("/v1/events", "/v1/admin")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def check_access(key: SecretStr | None, method: str, path: str, headers: Headers) -> None:
    """Raises ProblemError 401 or 403."""
    if method in SAFE_METHODS or not path.startswith(PROTECTED):
        return
    if key is None:
        _refuse_foreign(headers)
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(token.strip().encode(), key.get_secret_value().encode())
    if scheme.lower() != "bearer" or not right:
        raise ProblemError(401, "key-needed", "Send the service's key as `Authorization: Bearer ...`.")


def _refuse_foreign(headers: Headers) -> None:
    """Refuse a page of another origin, and one that calls this machine by a name of its own."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    try:
        local = is_loopback(urlsplit(f"//{host}").hostname or "")
        own = origin is None or urlsplit(origin).netloc == host
    except ValueError:  # no URL at all
        local = own = False
    if not (local and own):
        raise ProblemError(403, "foreign-origin", "Pages of another origin may not write here.")
