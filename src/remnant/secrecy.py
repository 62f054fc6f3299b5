"""What is used and never kept: passwords and keys in addresses, in settings and in the environment.

No torch.

An address is kept without its user, password and query; the full one stands in this process's
environment, which workers inherit.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, JsonValue

HIDDEN = "***"
# How worker processes are told the addresses in full.
VAULT = "REMNANT_ADDRESSES"
# Addresses that were given to this process: as they are kept -> in full.
_given: dict[str, str] = {}
VARIABLES = ("REMNANT_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")
# Parts of a query that say which protocol is spoken; all others may be keys, whatever their names
# are.
HARMLESS = frozenset({"api-version", "version"})
# Names that look like a secret's: whole words, so that max_tokens and tokenizer are none.
WORDS = frozenset(
    [
        "key", "keys", "token", "password", "passwd", "passphrase", "pwd", "secret", "secrets",
        "credential", "credentials",
        "authorization", "auth", "bearer", "apikey", "cookie", "signature", "sig", "jwt", "pat",
    ]
)  # fmt: skip
# Names that are nothing else: only these stay out of the identity of a result, since a "stop_token"
# decides it.
CERTAIN = re.compile(
    r"passw(or)?d|passphrase|pwd|secret|credential|authorization|bearer|(api|access|auth|private|hf|hub)[-_.]?(key|token)|^token$",
    re.I,
)
# A known secret shorter than this is not looked for in texts: it would hide parts of words.
SHORTEST = 6
_USER = re.compile(r"(https?://)[^\s/?#'\"]*@", re.I)
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?([^\s#'\"]*)", re.I)
_SHAPES = re.compile(r"\b(sk-[\w-]{16,}|hf_\w{16,}|ghp_\w{16,}|[Bb]earer\s+[\w.~+/-]{8,}=*)")
_SETTING = re.compile(
    r"([A-Za-z_][\w.-]*)(\"?'?\s*[=:]\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,}\]{\[=]+)"
)
_WHOLE = re.compile(r"((?:--[\w-]+=)?([A-Za-z_][\w.-]*)=)(.*)", re.S)


def looks_secret(name: str) -> bool:
    """Whether a key's name is that of a secret: one of its words is key, token, password, secret,
    authorization or the like.
    """
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower())
    return any(w in WORDS for w in words)


def kept_address(address: str) -> str:
    """An address without user, password and query, which ``full_address`` gives back in this
    process and its workers.

    Raises:
        ValueError: it is no address of a server.
    """
    try:
        parts = urlsplit(address.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme.lower() not in ("http", "https")
        or re.search(r"[\s\x00-\x1f\x7f]", address.strip())
    ):
        raise ValueError("is not the address of a server, such as http://127.0.0.1:8000/v1")
    harmless = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k in HARMLESS]
    place = parts.netloc.rpartition("@")[2]
    kept = urlunsplit((parts.scheme, place, parts.path, urlencode(harmless), ""))
    if kept != address.strip():
        _given[kept] = address.strip()
    return kept


def full_address(kept: str) -> tuple[str, str]:
    """The address without its query, and the query, both with what was taken off."""
    parts = urlsplit(_vault().get(kept, kept))
    user, at, place = parts.netloc.rpartition("@")
    # What stands before the last @ is the user, whatever characters are in it.
    netloc = ":".join(quote(unquote(p), safe="") for p in user.split(":", 1)) + at + place
    return urlunsplit((parts.scheme, netloc, parts.path, "", "")), parts.query


Address = Annotated[str, AfterValidator(kept_address)]


def _vault() -> dict[str, str]:
    try:
        found = json.loads(os.environ.get(VAULT, "{}"))
    except ValueError:
        found = {}
    return (found if isinstance(found, dict) else {}) | _given


def for_workers() -> dict[str, str]:
    """The variables by which a worker process learns the addresses that this one knows."""
    return {VAULT: json.dumps(_vault())}


def known() -> list[str]:
    """The secrets that this process knows, longest first: of the environment and of the addresses
    that were given.
    """
    found = {os.environ.get(name, "").strip() for name in VARIABLES}
    for address in _vault().values():
        parts = urlsplit(address)
        found |= {
            form for p in parts.netloc.rpartition("@")[0].split(":", 1) for form in (p, unquote(p))
        }
        found |= {v for k, v in parse_qsl(parts.query) if k not in HARMLESS}
    return sorted((s for s in found if len(s) >= SHORTEST), key=len, reverse=True)


def scrubbed(text: str) -> str:
    """A text without the secrets that are known, and without users, passwords and queries of
    addresses in it.
    """
    for secret in known():
        text = text.replace(secret, HIDDEN)
    return _QUERY.sub(_hidden_query, _USER.sub(rf"\1{HIDDEN}@", _SHAPES.sub(HIDDEN, text)))


def _hidden_query(found: re.Match[str]) -> str:
    return f"{found[1]}?{'&'.join(map(_hidden_value, found[2].split('&')))}"


def _hidden_value(part: str) -> str:
    key, equals, value = part.partition("=")
    return f"{key}={value if key in HARMLESS else HIDDEN}" if equals else key


def scrubbed_command(arguments: Sequence[str]) -> str:
    """A command line without secrets: values of settings whose key looks like one are hidden
    too.
    """
    return " ".join(_scrubbed_argument(a) for a in arguments)


def _scrubbed_argument(argument: str) -> str:
    whole = _WHOLE.fullmatch(argument)
    if whole and looks_secret(whole[2].rpartition(".")[2]):
        return whole[1] + HIDDEN
    hidden = _SETTING.sub(
        lambda f: f[1] + f[2] + HIDDEN if looks_secret(f[1].rpartition(".")[2]) else f[0], argument
    )
    return scrubbed(hidden)


def redacted(data: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Plain data as it may be kept: texts under a name that looks like a secret's are hidden, in
    other texts what is known.
    """
    return {k: _redacted(v, k) for k, v in data.items()}


def _redacted(data: Any, name: str) -> Any:
    if isinstance(data, dict):
        return {k: _redacted(v, str(k)) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_redacted(v, name) for v in data]
    if isinstance(data, str):
        return HIDDEN if data and looks_secret(name) else scrubbed(data)
    return data


def without_secrets(data: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Plain data as it enters an identity: without what is certainly a secret."""
    return {
        k: _without_secrets(v)
        for k, v in data.items()
        if not (isinstance(v, str) and CERTAIN.search(str(k)))
    }


def _without_secrets(data: JsonValue) -> JsonValue:
    if isinstance(data, dict):
        return without_secrets(data)
    return [_without_secrets(v) for v in data] if isinstance(data, list) else data
