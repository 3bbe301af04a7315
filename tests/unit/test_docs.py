"""What the documents name is there: commands and their options, targets of make, variables, files, sections.

Nothing is run: command lines are parsed by the program's own commands.
"""

import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core

from brewctl.cli.main import root_command
from tests.deploying import ROOT, check, known_variables

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_FOLDERS = {"brewctl", "tests", "docs", "deploy", "examples", ".ci"}
_OPERATORS = set("();<>|&")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[str]:
    """The lines of a page's shell blocks."""
    return [line for language, block in _FENCED.findall(text) if language == "sh" for line in block.splitlines()]


def spans(text: str) -> list[str]:
    """What a page writes between backticks, on one line each."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCED.sub("", text))]


def code(text: str) -> list[str]:
    """All that a page shows as code: blocks, indented lines, and words in the text."""
    indented = [line for line in _FENCED.sub("", text).splitlines() if line.startswith("    ") and "`" not in line]
    return [*blocks(text), *indented, *spans(text)]


def calls(line: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program in a line of shell."""
    if program not in line:
        return
    # A choice between words, as in `dlq list|show`, is no pipe.
    flat = re.sub(r"(?<=\S)\|(?=\S)", "/", line.replace('"$(', "( ").replace(')"', " )"))
    lexer = shlex.shlex(flat, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[str] | None = None
    before = ""
    for word in [*lexer, ";"]:
        if found is not None and set(word) <= _OPERATORS:
            yield found
            found = None
        elif found is not None:
            found.append(word)
        elif word == program and before != "from":
            found = []
        before = word


def is_placeholder(word: str) -> bool:
    """Whether a word stands for others: NAME, ID…, [OPTIONS]."""
    return "…" in word or word.startswith("[") or word.isupper()


_program = functools.cache(root_command)


def unknown(arguments: list[str]) -> str:
    """The first command or option that the program does not have; what is missing is no error."""
    command: Any = _program()
    rest = iter(arguments)
    for word in rest:
        if word.startswith("-"):
            option, assigned, _ = word.partition("=")
            known = {each: parameter for parameter in command.params for each in parameter.opts}
            known |= {each: parameter for parameter in command.params for each in parameter.secondary_opts}
            if option == "--help":
                return ""
            if option not in known:
                return word
            if not (assigned or known[option].is_flag or known[option].count):
                next(rest, "")
        elif isinstance(command, typer.core.TyperGroup):
            if is_placeholder(word) and word not in command.commands:
                return ""
            choices = ["MODULE:NAME"] if ":" in word else word.split("/")
            if missing := [each for each in choices if each not in command.commands]:
                return missing[0]
            command = command.commands[choices[0]]
    return ""


@functools.cache
def program_variables() -> set[str]:
    """The variables that the program or its tests read."""
    program = [file.read_text("utf-8") for file in ROOT.glob("brewctl/**/*.py")]
    tests = [file.read_text("utf-8") for file in ROOT.glob("tests/**/*.py")]
    written = {each for text in program for each in re.findall(r'["\'](BREW_[A-Z_]+)["\']', text)}
    asked = {each for text in tests for each in re.findall(r'environ(?:\.get\(|\[)"(BREW_[A-Z_]+)"', text)}
    return known_variables() | written | asked


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def sections(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name)


@every_document
def test_each_command_has_these_words_and_options(path: Path) -> None:
    lines = code(path.read_text("utf-8"))
    wrong = {shlex.join(["brewctl", *call]): unknown(call) for line in lines for call in calls(line, "brewctl")}
    assert {line: word for line, word in wrong.items() if word} == {}


@pytest.mark.parametrize("line", [line for path in DOCUMENTS for line in blocks(path.read_text("utf-8"))])
def test_a_command_in_a_block_runs_as_it_stands(line: str) -> None:
    for call in calls(line, "brewctl"):
        check(call)


@every_document
def test_each_target_of_make_is_there(path: Path) -> None:
    named = {
        word
        for line in code(path.read_text("utf-8"))
        for call in calls(line, "make")
        for word in call
        if not (is_placeholder(word) or "=" in word)
    }
    assert named <= targets()


@every_document
def test_each_variable_is_one_that_is_read(path: Path) -> None:
    named = set(re.findall(r"\bBREW_[A-Z_]*[A-Z]\b(?!_?[<…*])", path.read_text("utf-8")))
    own = {each for each in named if re.fullmatch(r"BREW_[A-Z_]+_DATABASE_URL(_FILE)?", each)}
    assert named - own - program_variables() == set()


@every_document
def test_each_file_that_is_named_is_there(path: Path) -> None:
    lines = [word for line in code(path.read_text("utf-8")) for word in line.split()]
    named = {word for word in lines if word.partition("/")[0] in _FOLDERS and re.fullmatch(r"[a-z0-9_./*-]+", word)}
    assert {each for each in named if "/" in each and not [*ROOT.glob(each)]} == set()
    installed = {word for word in lines if re.fullmatch(r"\.venv/bin/[\w-]+", word)}
    assert {each for each in installed if not (Path(sys.executable).parent / Path(each).name).exists()} == set()


@every_document
def test_each_link_leads_somewhere(path: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        place, _, section = link.partition("#")
        target = path.parent / place if place else path
        if not re.match(r"https?:", link) and not (target.exists() and (not section or section in sections(target))):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize(
    ("says", "look"),
    [
        ("`brewctl verify --lat 0`", test_each_command_has_these_words_and_options),
        ("`brewctl dlq list|shew`", test_each_command_has_these_words_and_options),
        ('    (eval "$(brewctl env --us order)"; brewctl publish) &', test_each_command_has_these_words_and_options),
        ("```sh\nBREW_TOPIC=t brewctl up && make tset\n```", test_each_target_of_make_is_there),
        ("BREW_TOPICS", test_each_variable_is_one_that_is_read),
        ("`docs/nothing.md`", test_each_file_that_is_named_is_there),
        ("[there](page.md#nothing)", test_each_link_leads_somewhere),
    ],
)
def test_a_wrong_word_is_found(tmp_path: Path, says: str, look: Callable[[Path], None]) -> None:
    page = tmp_path / "page.md"
    page.write_text(says)
    with pytest.raises(AssertionError):
        look(page)
