"""Which SQL text a handler may send: what would end the transaction is found, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewctl.delivery import sql_text

REFUSED = {
    "COMMIT": "COMMIT",
    "commit work": "COMMIT",
    "COMMIT AND CHAIN": "COMMIT",
    "COMMIT PREPARED 'x'": "COMMIT",
    "END": "END",
    "END TRANSACTION": "END",
    "Rollback": "ROLLBACK",
    "ROLLBACK WORK": "ROLLBACK",
    "ROLLBACK AND NO CHAIN": "ROLLBACK",
    "ROLLBACK PREPARED 'to'": "ROLLBACK",
    "ABORT": "ABORT",
    "BEGIN": "BEGIN",
    "BEGIN ISOLATION LEVEL SERIALIZABLE": "BEGIN",
    "START TRANSACTION": "START",
    "PREPARE TRANSACTION 'x'": "PREPARE TRANSACTION",
    "SET search_path TO x": "SET",
    "SET SESSION search_path TO x": "SET",
    "SET ROLE x": "SET",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": "SET",
    "RESET ALL": "RESET",
    "DISCARD PLANS": "DISCARD",
    "LISTEN a": "LISTEN",
    "PREPARE a AS SELECT 1": "PREPARE",
    "DEALLOCATE ALL": "DEALLOCATE",
    "DECLARE a CURSOR WITH HOLD FOR SELECT 1": "WITH HOLD",
    "CREATE TEMP TABLE a (b int)": "TEMP",
    "CREATE LOCAL TEMPORARY TABLE a ON COMMIT DELETE ROWS AS SELECT 1": "TEMP",
    "CREATE OR REPLACE TEMP VIEW a AS SELECT 1": "TEMP",
    "SELECT 1 INTO TEMP a": "TEMP",
    "SELECT set_config('a.b', 'true', false)": "set_config()",
    "SELECT set_config('a.b', concat(true, 1), false), true": "set_config()",
    "SELECT pg_catalog . set_config (%s, %s, %s)": "set_config()",
    "SELECT pg_advisory_lock(1)": "pg_advisory_lock()",
    "SELECT a FROM b WHERE pg_try_advisory_lock_shared (c)": "pg_try_advisory_lock_shared()",
}
BEFORE = ["", " \n\t", "-- SELECT\n", "/* a */", "/* a /* nested */ still */", ";", ";;", "SELECT 1;", "SELECT ';' ;",
          "SELECT 'it''s' ;", r"SELECT E'\'' ;", 'SELECT "a"";" ;', "SELECT $$ ; $$ ;", "DO $x$ BEGIN; $$ ; END $x$;",
          "SELECT $1;", "SELECT a$b$ FROM c$b$;", "SELECT %s; ",
          "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;"]  # fmt: skip
FINE = [
    "",
    "-- COMMIT",
    "/* ; COMMIT; */ SELECT 1",
    "ROLLBACK TO SAVEPOINT a",
    "ROLLBACK TO a",
    "ROLLBACK WORK TO SAVEPOINT a",
    "rollback transaction to a",
    "SAVEPOINT a",
    "RELEASE a",
    "SELECT 'x; COMMIT'",
    "SELECT 'x'';COMMIT'",
    r"SELECT E'x\'; COMMIT'",
    'SELECT "x; COMMIT"',
    "SELECT $$; COMMIT; $$",
    "SELECT $a$ $$; COMMIT; $a$",
    "SELECT commit FROM begin",
    "SELECT CASE WHEN a THEN b END",
    "SELECT CASE WHEN a THEN b\nEND",
    "INSERT INTO rollback VALUES (1)",
    "UPDATE a SET b = 1",
    "SET LOCAL search_path TO x",
    "set local role x",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET TRANSACTION READ ONLY",
    "NOTIFY a, 'b'",
    "EXECUTE a",
    "DECLARE a CURSOR FOR SELECT hold FROM b",
    "CREATE TEMP TABLE a (b int) ON COMMIT DROP",
    "CREATE TABLE temp (temporary int)",
    "INSERT INTO temp VALUES (1)",
    "SELECT temp FROM a",
    "SELECT set_config('a.b', 'c', true)",
    "SELECT set_config('a.b', concat('c', 1), is_local => TRUE), 2",
    "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1)",
    "SELECT set_config, pg_advisory_lock FROM a",
    "DO $$ BEGIN PERFORM 1; END $$",
    "DO $begin$ BEGIN PERFORM 1; COMMIT; END $begin$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END",
    "commitment",
    "SELECT 1; commits",
    "begin$x",
    "éend",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_end_or_outlast_the_transaction_is_refused(text: str) -> None:
    for before in BEFORE:
        assert sql_text.refusal(before + text).startswith(REFUSED[text] + " would"), before
        assert sql_text.refusal(f"{before}{text.lower()} ; SELECT 1 -- so"), before


@pytest.mark.parametrize("text", FINE)
def test_what_only_looks_so_is_not(text: str) -> None:
    assert sql_text.refusal(text) == ""


GAPS = st.sampled_from(["", " ", "\n", "--x\n", "/* ' */", "/* /* $$ */ */"])
PIECES = st.sampled_from(
    ["SELECT 1", "SELECT ';'", "SELECT $a$;$a$", 'SELECT ";"', r"SELECT E'\';'", "UPDATE a SET b = %s", "SAVEPOINT a"]
)


@given(st.lists(st.tuples(GAPS, PIECES), max_size=6), st.integers(0, 6), GAPS, st.sampled_from(sorted(REFUSED)))
def test_it_is_found_wherever_it_stands(pieces: list[tuple[str, str]], place: int, gap: str, text: str) -> None:
    parts = [gap + piece for gap, piece in pieces]
    assert sql_text.refusal(" ; ".join(parts)) == ""
    assert sql_text.refusal(" ; ".join([*parts[:place], gap + text, *parts[place:]]))


@given(st.text(), st.sampled_from(["'{}'", '"{}"', "$q${}$q$", "/*{}*/"]))
def test_no_literal_is_looked_into(inside: str, quotes: str) -> None:
    for sign in ("'", '"', "$", "*", "/"):
        inside = inside.replace(sign, "")
    assert sql_text.refusal(f"SELECT {quotes.format(f';COMMIT;{inside};COMMIT;')} -- END") == ""


@given(st.text(alphabet=st.sampled_from("'\"$-/*;\\eE aZ1_\n%sé"), max_size=60))
def test_any_text_is_read_to_its_end(text: str) -> None:
    assert isinstance(sql_text.refusal(text + " end"), str)
    found = list(sql_text.tokens(text))
    assert all(text[place:].startswith(token) for _, token, place in found)
