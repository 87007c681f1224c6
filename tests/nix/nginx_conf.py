"""The rendered nginx.conf on Debian: what its older programs do not know, and where it runs without namespaces."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adaptation:
    """A difference between the rendered nginx.conf and a file for Debian's nginx."""

    rendered: str
    """Regular expression of the rendered lines."""
    debian: str
    reason: str
    needed: Callable[[], bool]


ADAPTATIONS = (
    Adaptation(
        rendered=r'ssl_conf_command Groups "X25519MLKEM768:',
        debian='ssl_conf_command Groups "',
        reason="OpenSSL before 3.5 has no X25519MLKEM768",
        needed=lambda: ssl.OPENSSL_VERSION_INFO < (3, 5),
    ),
)
"""All differences. A directive of a newer nginx without a row fails `nginx -t`."""


def for_debian(text: str) -> str:
    """Return the rendered ``text`` with the :data:`ADAPTATIONS` that this machine needs."""
    for adaptation in ADAPTATIONS:
        if adaptation.needed():
            text = re.sub(adaptation.rendered, adaptation.debian, text)
    return text


def elsewhere(text: str, folder: Path, *, http: str, https: str) -> str:
    """Return ``text`` for an nginx without namespaces: its files in ``folder``, other listening addresses.

    Raises :class:`ValueError` if the text has none of the lines that change.
    """
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = [f"access_log {folder}/access.log;", *(f"{kind}_temp_path {folder}/{kind};" for kind in temporary)]
    changes = {
        # Folders that systemd makes for the unit, and the certificates.
        r"/run/nginx/": f"{folder}/",
        r"/var/lib/acme/": f"{folder}/",
        # Debian's nginx was built with other folders than that of nixpkgs.
        r"\nhttp \{": "\nhttp {\n" + "\n".join(own),
        r"listen \[::0\]:\d+ [^;]*;": "",
        r"listen 0\.0\.0\.0:80 ": f"listen {http} ",
        r"listen 0\.0\.0\.0:443 ": f"listen {https} ",
    }
    for rendered, replacement in changes.items():
        text, count = re.subn(rendered, replacement, text)
        if count == 0:
            raise ValueError(
                f"the rendered nginx.conf has no text like {rendered}: correct tests/nix/nginx_conf.py"
            )
    return text
