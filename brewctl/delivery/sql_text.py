"""Splits SQL text into tokens, to refuse statements that would end a transaction and to read a downstream's statement.

Comments, literals, quoted names and dollar-quoted bodies are skipped as wholes.
"""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

Token = tuple[str, str, int]  # its kind, its text, its place in the whole

_TOKEN = re.compile(
    r"""
      (?P<gap> \s+ | --[^\n]* )
    | (?P<comment> /\* )
    | (?P<escaped> [eE]'(?:[^'\\]|\\.|'')*' )
    | (?P<quoted> '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?P<dollar> \$(?:[^\W\d]\w*)?\$ )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<number> [\d$][\w$]* )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
# A text without any of these words is not refused; most texts are not split into tokens at all.
_SUSPECT = re.compile(
    r"(?i)\b(?:commit|rollback|end|abort|begin|start|prepare|set|reset|discard|listen|deallocate|hold|temp|temporary"
    r"|set_config|pg_(?:try_)?advisory_lock(?:_shared)?)\b"
)
_ENDING = frozenset({"commit", "end", "abort", "rollback"})
_BEGINNING = frozenset({"begin", "start"})
# SET followed by one of these ends with the transaction.
_SET_LOCALLY = frozenset({"local", "constraints", "transaction"})
_SESSION_LOCKS = {
    f"pg_{tried}advisory_lock{shared}": f"pg_{tried}advisory_xact_lock{shared}"
    for tried in ("", "try_")
    for shared in ("", "_shared")
}
_TEMPORARY = frozenset({"temp", "temporary"})

_EFFECTS = frozenset({"insert", "update", "delete", "merge", "with"})
_MAIN = frozenset({"insert", "update", "delete", "merge", "select", "values"})
# A `*` after these means all columns, and so does a function that makes a row one value.
_BEFORE_ROW = frozenset({"select", "all", "distinct", ",", "."})
_OF_ROW = frozenset({"to_json", "to_jsonb", "row_to_json"})


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a text, without white space and comments.

    A literal, a quoted name or a dollar-quoted body is one token. Stops after one that is not closed.
    """
    place = 0
    while match := _TOKEN.match(text, place):
        kind, start, place = str(match.lastgroup), place, match.end()
        if kind == "comment":
            place = _after_comment(text, place)
        elif kind == "dollar":
            end = text.find(match[0], place)
            place = end + len(match[0]) if end >= 0 else len(text)
        if kind not in {"gap", "comment"}:
            yield kind, text[start:place], start
        if match[0] in ("'", '"'):  # not closed: the server will report it
            return


def _after_comment(text: str, place: int) -> int:
    depth = 1  # comments nest
    while depth and (edge := _COMMENT_EDGE.search(text, place)):
        depth += 1 if edge[0] == "/*" else -1
        place = edge.end()
    return len(text) if depth else place


def statements(text: str) -> list[list[str]]:
    """Return each statement of a text as its words in lower case; any other token is its first character."""
    found: list[list[str]] = [[]]
    body = 0  # the depth in a function's body BEGIN ATOMIC … END, whose `;` end no statement
    for kind, sign, _ in tokens(text):
        word = sign.lower() if kind == "word" else sign[0]
        if body:
            body += {"case": 1, "end": -1}.get(word, 0)
        elif word == "atomic" and found[-1][-1:] == ["begin"] and found[-1][0] == "create":
            body = 1
        elif sign == ";":
            found.append([])
            continue
        found[-1].append(word)
    return [words for words in found if words]


@functools.lru_cache(maxsize=512)
def refusal(text: str) -> str:
    """Return why a handler must not send this text within its event's transaction; "" where it may."""
    if not _SUSPECT.search(text):
        return ""
    return next((why for words in statements(text) if (why := _refusal(words))), "")


def _refusal(words: list[str]) -> str:
    first, second = words[0], words[1] if len(words) > 1 else ""
    to = words[2:3] if second in {"work", "transaction"} else words[1:2]
    why = ""
    if first in _ENDING and not (first == "rollback" and to == ["to"]):
        why = f"{first.upper()} would end the transaction"
    elif first in _BEGINNING:
        why = f"{first.upper()} would begin a transaction inside the one that is open"
    elif first == "prepare" and second == "transaction":
        why = "PREPARE TRANSACTION would end the transaction"
    elif first == "set" and second not in _SET_LOCALLY:
        why = "SET would outlast the transaction and change what comes later: use SET LOCAL"
    elif first in {"reset", "discard"}:
        why = f"{first.upper()} would outlast the transaction and change what comes later"
    return why or _left_behind(words)


def _left_behind(words: list[str]) -> str:
    """Return what a statement would leave in the session, which other events' transactions use next; "" for nothing."""
    first, why = words[0], ""
    if first == "listen":
        why = "LISTEN would outlast the transaction: listen on a connection of your own"
    elif first == "prepare":
        why = "PREPARE would outlast the transaction: psycopg prepares statements itself"
    elif first == "deallocate":
        why = "DEALLOCATE would take away statements that psycopg has prepared"
    elif first == "declare" and _within(words, "with", "hold"):
        why = "WITH HOLD would let the cursor outlast the transaction"
    elif _makes_temporary(words) and not _within(words, "on", "commit", "drop"):
        why = "TEMP would let it outlast the transaction: make a temporary table with ON COMMIT DROP"
    calls = (place for place, word in enumerate(words) if word == "(" and place)
    return why or next((why for place in calls if (why := _left_by_call(words[place - 1], words[place + 1 :]))), "")


def _left_by_call(function: str, behind: list[str]) -> str:
    if function in _SESSION_LOCKS:
        return f"{function}() would hold its lock after the transaction: use {_SESSION_LOCKS[function]}()"
    if function == "set_config" and "true" not in _last_argument(behind):
        return "set_config() would outlast the transaction and change what comes later: write `true` as its third value"
    return ""


def _within(words: list[str], *wanted: str) -> bool:
    return any(tuple(words[place : place + len(wanted)]) == wanted for place in range(len(words)))


def _makes_temporary(words: list[str]) -> bool:
    if words[0] == "create":
        kind = next((word for word in words[1:] if word not in {"or", "replace", "local", "global"}), "")
        return kind in _TEMPORARY
    return any(
        word == "into" and words[place + 1] in _TEMPORARY and words[place - 1] not in {"insert", "merge"}
        for place, word in enumerate(words[:-1])
    )


def _last_argument(words: list[str]) -> list[str]:
    """Return the words of a call's last argument, from the words after its opening bracket."""
    depth, last = 1, list[str]()
    for word in words:
        depth += {"(": 1, ")": -1}.get(word, 0)
        if not depth:
            break
        last = [] if word == "," and depth == 1 else [*last, word]
    return last


class EffectStatement(NamedTuple):
    """A statement over `fresh`, split so that its WITH queries can be put into another WITH."""

    queries: str  # its WITH queries: `name AS (…), …`; empty where it has none
    recursive: bool
    statement: str  # the statement after them
    words: frozenset[str]  # the names in it, in lower case; "*" where it reads all columns


def effect(text: str) -> EffectStatement:
    """Split a downstream's `sql`. Raises ValueError unless it is one statement that leaves nothing in the session."""
    found = list(tokens(text))
    first = found[0][1].lower() if found else ""
    if first not in _EFFECTS:
        raise ValueError("sql must be one INSERT, UPDATE, DELETE or MERGE over `fresh`")
    if why := refusal(text):
        raise ValueError(f"sql is refused: {why}")
    outermost = _outermost(found)
    end = len(text)
    if ends := [place for _, sign, place in outermost if sign == ";"]:
        end = ends[0]
        if found[-1][2] != end:
            raise ValueError("sql must be one statement")
    words = _names(found)
    if first != "with":
        return EffectStatement("", recursive=False, statement=text[:end], words=words)
    recursive = len(found) > 1 and found[1][1].lower() == "recursive"
    _, word, start = found[1] if recursive else found[0]
    main = next((place for _, word, place in outermost if word.lower() in _MAIN), None)
    if main is None:
        raise ValueError("sql must be one INSERT, UPDATE, DELETE or MERGE over `fresh`, also behind its WITH")
    return EffectStatement(text[start + len(word) : main], recursive=recursive, statement=text[main:end], words=words)


def _outermost(found: list[Token]) -> list[Token]:
    depth, outermost = 0, []
    for kind, sign, place in found:
        depth -= sign == ")"
        if depth == 0:
            outermost.append((kind, sign, place))
        depth += sign == "("
    return outermost


def _names(found: list[Token]) -> frozenset[str]:
    names, before = set(), ""
    for kind, sign, _ in found:
        word = sign.lower()
        if kind == "word" or sign[0] == '"':
            names.add(word.strip('"'))
        if (word == "*" and before in _BEFORE_ROW) or word in _OF_ROW:
            names.add("*")
        before = word
    return frozenset(names)
