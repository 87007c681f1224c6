"""Writes the metrics of a process without a port as a file for node_exporter's textfile collector."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile

from appliance.errors import StoreError


def write_metrics(file: Path, registry: CollectorRegistry) -> None:
    """Replace ``file`` with the metrics of ``registry``; readers see the old file or the new one.

    node_exporter has a user of its own, so the file is readable for every user, whatever the umask of the unit.

    Raises :class:`StoreError` if the file cannot be written.
    """
    try:
        write_to_textfile(str(file), registry)
        file.chmod(0o644)
    except OSError as error:
        raise StoreError.unwritable(file, error) from None
