"""Hints of real servers' refusals: what each says to do is done, and mends it."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.delivery import database
from brewctl.errors import BrewError
from tests.conftest import Rig, run


@pytest.fixture
def absent(servers: dict[str, str]) -> Iterator[str]:
    """The name of a database that is not there, and is removed where a test makes it."""
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    yield name
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as maintenance:
        maintenance.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def counts(url: str, **env: str) -> tuple[int, str]:
    done = run("counts", env={"BREW_DATABASE_URL": url, **env})
    return done.returncode, done.stderr.strip()


def test_a_database_that_is_not_there_and_then_its_tables(servers: dict[str, str], absent: str) -> None:
    url = make_conninfo(servers["BREW_DATABASE_URL"], dbname=absent)
    code, said = counts(url)
    assert code == 3
    assert said.endswith(
        "has no such database or role: create it there in psql, or correct BREW_DATABASE_URL or --database-url"
    )
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as psql:
        psql.execute(f'CREATE DATABASE "{absent}"')
    code, said = counts(url)
    assert (code, said.endswith(": run `brewctl db init`")) == (1, True)
    assert run("db", "init", env={"BREW_DATABASE_URL": url}).returncode == 0
    assert counts(url)[0] == 0


def test_a_password_that_is_wrong(servers: dict[str, str]) -> None:
    url = servers["BREW_DATABASE_URL"]
    wrong = make_conninfo(url, password="wrong")
    try:
        psycopg.connect(wrong).close()
        pytest.skip("the server trusts everybody")
    except psycopg.OperationalError:
        pass
    code, said = counts(wrong)
    assert code == 3
    assert "refused the password: correct the password in BREW_DATABASE_URL or --database-url, or in PGPASSWORD" in said
    given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    password = given.pop("password")
    without = make_conninfo("", **given)
    assert "PGPASSWORD" in counts(without, PGPASSWORD="", PGPASSFILE="/nowhere")[1]
    assert counts(without, PGPASSWORD=password)[1].find("password") < 0


def test_a_statement_that_takes_too_long_is_no_server_that_is_away(rig: Rig) -> None:
    with pytest.raises(BrewError) as refused, database.connect(rig.settings) as connection:
        connection.execute("SET statement_timeout = 1; SELECT pg_sleep(60)")
    assert refused.value.exit_code == 1
    assert "canceling statement due to statement timeout: run it again" in str(refused.value)
