"""Is a server there? Asked with the standard library alone, so that starting servers needs no HTTP client."""

from __future__ import annotations

import urllib.error
import urllib.request

# No proxies, whatever the environment says, and no redirects: only the address that was named is contacted.


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def is_healthy(url: str, *, timeout_s: float = 5.0) -> bool:
    """Return whether `url`/health answers 200 in time. vLLM asks for no key there."""
    try:
        with _OPENER.open(f"{url}/health", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
