"""What a connection is asked with, of a URL and a shell."""

import os
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from brewctl.delivery.database import session
from brewctl.delivery.database.session import Session
from brewctl.limits import Limits


def a_session(url: str = "postgresql://brew@db.example/shop", **fields: Any) -> Session:
    return Session(url, "order-1", Limits(), statement_s=5, lock_s=0.1, **fields)


def test_settings_are_one_word_each_in_the_startup_packet() -> None:
    options = str(a_session().arguments()["options"])
    assert options.startswith("-c statement_timeout=5000ms -c lock_timeout=100ms -c idle")
    assert (
        r"default_transaction_isolation=read\ committed -c search_path=\"$user\",\ public".replace('\\"', '"')
        in options
    )


@pytest.mark.parametrize(
    ("options", "settings", "rest"),
    [
        ("", {}, []),
        ("-c jit=on", {"jit": "on"}, []),
        ("-cjit=on --statement-timeout=0", {"jit": "on", "statement_timeout": "0"}, []),
        (r"-c search_path=a\ b,\\c", {"search_path": r"a b,\c"}, []),
        ("-c datestyle=German -c TIMEZONE=CET", {"DateStyle": "German", "TimeZone": "CET"}, []),
        ("-B 100 -c jit=on -d", {"jit": "on"}, ["-B", "100", "-d"]),
        ("-c", {}, ["-c"]),
        ("-c x", {}, ["-c", "x"]),
    ],
)
def test_the_options_of_a_url_are_read_as_the_server_reads_them(
    options: str, settings: dict[str, str], rest: list[str]
) -> None:
    url = f"host=db options='{options.replace(chr(92), chr(92) * 2)}'"
    asked = a_session(url)
    assert asked.given_settings() == settings
    assert asked.settings().items() >= settings.items()
    assert str(asked.arguments()["options"]).endswith(" ".join(rest))


def test_a_pooler_that_has_refused_the_options_is_asked_without_them() -> None:
    asked = a_session(takes_options=False)
    assert asked.arguments()["options"] == ""
    assert asked.arguments()["client_encoding"] == "UTF8"


@pytest.mark.parametrize(
    ("url", "variable", "keyword", "value"),
    [
        ("postgresql://127.0.0.1/shop", "PGSSLMODE", "sslmode", "prefer"),
        ("postgresql://localhost/shop", "PGSSLMODE", "sslmode", "prefer"),
        ("postgresql://[::1]/shop", "PGREQUIRESSL", "sslmode", "prefer"),
        ("postgresql://127.0.0.1/shop?sslmode=require", "PGSSLMODE", "sslmode", "require"),
        ("postgresql://db.example/shop", "PGSSLMODE", "sslmode", None),
        ("postgresql://127.0.0.1,db.example/shop", "PGSSLMODE", "sslmode", None),
        ("postgresql://db.example/shop", "PGHOSTADDR", "hostaddr", ""),
        ("postgresql:///shop", "PGHOSTADDR", "hostaddr", None),
        ("postgresql://db.example/shop", "PGCLIENTENCODING", "client_encoding", ""),
        ("postgresql://127.0.0.1/shop", "PGPASSWORD", "password", None),
        ("postgresql://127.0.0.1", "PGDATABASE", "dbname", None),
        ("postgresql://127.0.0.1/shop", "PGTARGETSESSIONATTRS", "target_session_attrs", "any"),
    ],
)
def test_which_variables_decide(
    url: str, variable: str, keyword: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert session.explicit(conninfo_to_dict(url)).get(keyword) == value


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://db.example/shop", False),
        ("postgresql:///shop", True),  # it says where
        ("postgresql://db.example/shop?service=mine", True),
    ],
)
def test_a_service_is_no_part_of_a_url_that_names_a_host(url: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    session.explicit(conninfo_to_dict(url))
    assert ("PGSERVICE" in os.environ) == kept


@pytest.mark.parametrize(
    ("url", "message", "variables"),
    [
        ("db.example/shop", "server does not support SSL, but SSL was required", ["PGREQUIRESSL", "PGSSLMODE"]),
        ("db.example/shop?sslmode=require", "server does not support SSL, but SSL was required", []),
        ("db.example/shop", 'password authentication failed for user "brew"', ["PGPASSWORD", "PGUSER"]),
        ("brew:secret@db.example/shop", 'password authentication failed for user "brew"', []),
        ("db.example/shop", 'invalid sslmode value: "1"', ["PGREQUIRESSL", "PGSSLMODE"]),
        ("db.example/shop", 'invalid integer value "x" for connection option "port"', ["PGPORT"]),
        ("db.example/shop", "could not translate host name: Name or service not known", []),
        ("/shop", "connection refused", ["PGHOST", "PGPORT"]),
    ],
)
def test_which_variables_a_refusal_has_to_do_with(
    url: str, message: str, variables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGSSLMODE", "PGREQUIRESSL", "PGPASSWORD", "PGUSER"):
        monkeypatch.setenv(name, "1")
    assert session.blamed(Exception(message), f"postgresql://{url}") == variables
