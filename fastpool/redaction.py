"""What may be shown of the text of an error: all but passwords.

Owns: the search for secrets in a text, by their look and by what the pool connects with. Refuses:
to decide what is shown. Errors name what they stumbled over: of a malformed conninfo that is a
piece of it, or all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import Error, ProgrammingError

MASK = "***"

_SECRET_KEYS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key")
# Up to the last "@", for a password may have one in it that should have been escaped.
_IN_URL = re.compile(r"(\w://[^\s:/@]*):([^\s]*)@")
_IN_PAIR = re.compile(
    rf"({'|'.join(_SECRET_KEYS)})(['\"]?\s*[=:]\s*)"
    r"('(?:\\.|[^'\\])*'?|\"(?:\\.|[^\"\\])*\"?|[^\s&,;)}\]]+)",
    re.IGNORECASE,
)
# The quoted pieces of libpq's complaint about a conninfo, but for the sign that it misses.
_QUOTED = re.compile(r'("=")|".*"', re.DOTALL)


def hide(text: str) -> str:
    """Return *text* without what looks like a password, in a URL or after its keyword."""
    return _IN_PAIR.sub(rf"\1\2{MASK}", _IN_URL.sub(rf"\1:{MASK}@", text))


def mask(error: BaseException | None, hide: Callable[[str], str]) -> None:
    """Take the secrets out of the driver's own exceptions, this one and those that led to it: it is
    raised in the program, which may log it. *hide*: what does that with a text."""
    while error is not None:
        if isinstance(error, Error):
            error.args = tuple(hide(one) if isinstance(one, str) else one for one in error.args)
        error = error.__cause__ or error.__context__


class Redactor:
    """Knows what a pool connects with, so as to find pieces of it in a text."""

    def __init__(self) -> None:
        self._learnt: tuple[Any, Any] = ("", None)

    def learn(self, conninfo: Any, kwargs: Any) -> None:
        """Remember what a connect has failed with: callables may say something else each time."""
        self._learnt = (conninfo, kwargs)

    def hide(self, text: str, conninfo: Any = None, kwargs: Any = None) -> str:
        """Return *text* without the secrets of *conninfo* and *kwargs*, and of those learnt."""
        for info, options in (self._learnt, (conninfo, kwargs)):
            info = info if isinstance(info, str) else ""
            options = options if isinstance(options, Mapping) else {}
            text = _hide_known(text, info, options)
        return hide(text)


def _hide_known(text: str, conninfo: str, kwargs: Mapping[str, Any]) -> str:
    shown = hide(conninfo)
    try:
        params = conninfo_to_dict(conninfo)
    except (ProgrammingError, ValueError):
        params = {}
        if shown != conninfo:  # where the password ends nobody can say
            text = _QUOTED.sub(lambda found: found[1] or f'"{MASK}"', text)
            shown = MASK
    if shown != conninfo:
        text = text.replace(conninfo, shown)
    # What is known to all anyway: a server may say that user "postgres" failed, with password
    # "postgres".
    public = {str(value) for key, value in params.items() if key not in _SECRET_KEYS}
    secrets = {*_secrets_in(conninfo, params), *_secrets_in("", kwargs)} - public - {""}
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return text


def _secrets_in(conninfo: str, params: Mapping[str, Any]) -> Iterator[str]:
    for key in _SECRET_KEYS:
        yield str(params.get(key) or "")
    for found in _IN_URL.finditer(conninfo):
        yield found[2]
        # libpq takes an unescaped one apart at these, and complains of the pieces.
        yield from re.split(r"[@/?#]", found[2])
    for found in _IN_PAIR.finditer(conninfo):
        yield found[3].strip("'\"")
