"""`brewctl topic …`: create and configure the topic."""

import functools
import threading
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from brewctl.cli import grants, options, output, topic_keep

Answer = TypeVar("Answer")


def when_there(attempt: Callable[[], Answer], wait_s: float) -> Answer:
    """Call `attempt`; retry for `wait_s` seconds while its server is away. Returns its result."""
    from brewctl import waiting

    done = waiting.until_there(
        lambda: (attempt(),), wait_s, threading.Event(), tell=lambda error: output.note(output.plain(f"waits: {error}"))
    )
    assert done is not None  # the event is never set: a Ctrl-C raises KeyboardInterrupt instead
    return done[0]


def create(
    recreate: Annotated[
        bool, typer.Option("--recreate", help="Delete the topics, and the groups' offsets in them, first.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            help="How long a new topic keeps its records: days such as 7 or 7d, 36h, forever.",
            metavar="7d|forever",
            show_default="7d",
        ),
    ] = None,
    yes: options.Yes = False,
    wait: options.Wait = 0,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Create the topic and its dead-letter topic.

    They have 6 partitions, 3 replicas and min.insync.replicas 2; fewer replicas if there are fewer brokers.

    With --wait it waits for all named brokers, or for three of them.
    """
    from brewctl.delivery.topics import keeping, topics

    how_long = keeping.DEFAULT if keep is None else keep
    keeping.parse(how_long)
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    if recreate:
        what = f"topic {settings.topic} with its groups' offsets on {','.join(settings.brokers)}"
        options.confirm_destruction(what, mine=options.is_sandbox(settings.configured, "brokers"), yes=yes)
    made = functools.partial(topics.create, settings, recreate=recreate, whole=bool(wait), keep=how_long)
    created = when_there(made, wait)
    for name in (settings.topic, settings.dead_letter_topic):
        output.emit(f"topic {name} {'created' if name in created else 'was there already'}")
    if keep and settings.topic not in created:
        output.note(f"the topic keeps its records as long as before: `brewctl topic keep {keep}` changes that")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    topic = typer.Typer(help="Create and configure the topic.", no_args_is_help=True)
    topic.command(epilog="Example: brewctl topic create --recreate")(create)
    topic.command("keep", epilog="Example: brewctl topic keep forever")(topic_keep.keep)
    topic.command("grants", epilog="Example: brewctl topic grants --prefix shop_")(grants.topic)
    topic.callback()(lambda: None)
    app.add_typer(topic, name="topic")
