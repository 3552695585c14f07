"""Databases as stores of MLflow: whether one can be opened, told at once."""

import socket
from pathlib import Path

import sqlalchemy

from ual_ray.config.files import try_writing

DIALECTS = ("sqlite", "postgresql", "mysql", "mssql")
SECONDS = 10.0


def check_database(uri: str) -> None:
    """Raise the error of a database that cannot be opened, on which MLflow tries for 100 s. Others are left to MLflow."""
    if not uri.startswith(DIALECTS):
        return
    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ValueError("it names no file: the store would be lost with the process")
        try_writing(Path(url.database).absolute().parent)
    elif url.host and url.port:
        socket.create_connection((url.host, url.port), timeout=SECONDS).close()
    engine = sqlalchemy.create_engine(url)
    try:
        engine.connect().close()
    finally:
        engine.dispose()
