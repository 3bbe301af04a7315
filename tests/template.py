"""A database with brewctl's tables, one for each server, of which the rigs' databases are copies."""

import uuid
from dataclasses import replace

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.schema import setup

_names: dict[str, str] = {}  # by the server's URL


def name(settings: Settings, server_url: str, maintenance: psycopg.Connection) -> str:
    """Return the name of the template on this server, made with the first call."""
    if server_url not in _names:
        made = f"brew_test_template_{uuid.uuid4().hex[:12]}"
        maintenance.execute(f'CREATE DATABASE "{made}"'.encode())
        url = psycopg.conninfo.make_conninfo(server_url, dbname=made)
        with database.connect(replace(settings, database_url=url)) as connection:
            setup.initialize(connection)
        _names[server_url] = made
    return _names[server_url]


def drop(server_url: str) -> None:
    """Drop the template, where one was made."""
    if made := _names.pop(server_url, None):
        with psycopg.connect(server_url, autocommit=True) as maintenance:
            maintenance.execute(f'DROP DATABASE "{made}"'.encode())
