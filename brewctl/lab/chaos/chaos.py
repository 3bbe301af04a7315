"""Play a scenario: a steady load, planned faults, then a verdict from the client's history and from `verify`.

nodes start ─► load ─► faults begin and end by the plan ─► all healed ─► load ends ─► effects catch up ─► verify
"""

import heapq
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg

from brewctl.config import Settings
from brewctl.delivery.schema import homes, registration
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError
from brewctl.lab.chaos import databases, ledger, record_faults, scenarios, verdict
from brewctl.lab.chaos.result import ScenarioResult
from brewctl.lab.chaos.scenarios import PlannedFault, Scenario
from brewctl.lab.chaos.stage import SkippedError, Stage
from brewctl.lab.load.load import CallOutcome, History, Load
from brewctl.lab.play.cast import cast
from brewctl.lab.play.servers import Servers
from brewctl.lab.record.history import Act, ActEvent, FaultSpan
from brewctl.lab.record.watch import FlowWatch
from brewctl.lifecycle import wait_until
from brewctl.verify import Check, Verification, verify

_LEAVE_S = 15.0  # after a session timeout: until Kafka has removed members that were killed
_STEADY_S = 60.0  # until the first orders have their effects
_CALM_S = 3.0  # load after the last fault
_CATCH_UP_S = 180.0
_SETTLE_S = 2.0
# A second load, whose clients have a short timeout and send some invalid orders, so that many calls are refused.
_HASTY_SHARE = 8
_HASTY_S = 1.0
_INVALID_EVERY = 10
# The checks of `verify` for missing and doubled effects of each downstream.
_EFFECT_CHECKS = ("missing", "doubled")


@dataclass(frozen=True)
class Plan:
    """The settings that all scenarios of a run share."""

    orders: int  # or more: the load lasts as long as the faults
    rate: float  # orders a second
    seed: int
    session_s: float
    cancel: float = 0.0  # share of the orders that are cancelled


Tell = Callable[[float, str], None]


def run(
    settings: Settings, scenario: Scenario, plan: Plan, servers: Servers, *, logs: Path, tell: Tell
) -> tuple[ScenarioResult, Act]:
    """Play one scenario on the sandbox. Empties tables and topics first; restores servers and ends nodes afterwards.

    Raises BrewError if it can't be played at all, for example because a role does not start.
    """
    chance = scenarios.chance(plan.seed, scenario.name)
    players = cast(settings)
    steps = scenario.plan(chance, plan.session_s, players)
    result = ScenarioResult(scenario.name, plan=[str(step) for step in steps])
    watch = FlowWatch(settings)
    act = Act(scenario.name, scenario.title_for(players))
    topics.await_empty_groups(settings, timeout_s=plan.session_s + _LEAVE_S)
    topics.create(settings, recreate=True)
    with homes.opened(settings) as found:
        registration.initialize_all(settings, found.story, reset=True)
        databases.empty_further(found)
        databases.at_each(found, ledger.create)
    stage = Stage(
        settings,
        servers,
        cast=players,
        logs=logs,
        network=scenario.network,
        session_s=plan.session_s,
        chance=chance,
        on_line=lambda line: act.events.append(ActEvent(watch.now_s, line)),
    )
    with stage:
        try:
            _ScenarioRun(settings, stage, plan, result, act, watch, tell).run(steps)
        except SkippedError as skipped:
            result.skipped = act.skipped = str(skipped)
        except BrewError as error:
            result.findings.append(str(error))
        finally:
            servers.restore()
            with homes.opened(settings) as found:
                databases.at_each(found, ledger.drop)
    act.ok = result.ok
    act.findings = result.findings
    act.figures = result.figures()
    return result, act


def _effects(verification: Verification) -> tuple[int, int]:
    """Return the numbers of missing and of doubled effects."""
    missing, doubled = (sum(check.violations for check in _of_groups(verification, name)) for name in _EFFECT_CHECKS)
    return missing, doubled


def _of_groups(verification: Verification, name: str) -> list[Check]:
    """Return the check of this name for each downstream."""
    return [check for check in verification.checks if check.name.endswith(f"-{name}")]


class _ScenarioRun:
    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        plan: Plan,
        result: ScenarioResult,
        act: Act,
        watch: FlowWatch,
        tell: Tell,
    ) -> None:
        self._settings = settings
        self._stage = stage
        self._plan = plan
        self._result = result
        self._act = act
        self._tell = tell
        self._watch = watch

    def run(self, steps: Sequence[PlannedFault]) -> None:
        """Play the faults under load, wait for all effects, and judge."""
        self._stage.start_all()
        told, hastily = History(), History()
        load = Load(
            self._stage.addresses,
            told.record,
            rate=self._plan.rate,
            cancel=self._plan.cancel,
            record_cancel=told.record_cancel,
            security=self._settings.order_security,
        )
        hasty = Load(
            self._stage.addresses,
            hastily.record,
            rate=self._plan.rate / _HASTY_SHARE,
            concurrency=8,
            timeout_s=_HASTY_S,
            invalid_every=_INVALID_EVERY,
            cancel=self._plan.cancel,
            record_cancel=hastily.record_cancel,
            security=self._settings.order_security,
        )
        stop = threading.Event()
        with self._watch.running(), ThreadPoolExecutor(2, thread_name_prefix="load") as executor:
            sending = executor.submit(load.run, stop)
            asking = executor.submit(hasty.run, stop)
            healed_s = 0.0
            try:
                self._await("the first orders", lambda: self._watch.has_flowed(self._plan.rate), _STEADY_S)
                self._disturb(steps)
                healed_s = self._watch.now_s
                self._stage.wait_ready()
                self._stage.halt.wait(_CALM_S)
                self._await(
                    f"{self._plan.orders} orders sent",
                    lambda: len(told.calls) >= self._plan.orders or sending.done(),
                    self._plan.orders / self._plan.rate + _CATCH_UP_S,
                )
            except BrewError as error:
                # The scenario is judged nevertheless: other findings may tell the cause.
                self._result.findings.append(str(error))
            finally:
                stop.set()
            sending.result()
            asking.result()
            load_end_s = self._watch.now_s
            self._say("no more orders")
            self._catch_up()
            fell = self._stage.stop()
        self._measure(told, hastily, healed_s, load_end_s)
        self._judge(fell)

    def _disturb(self, steps: Sequence[PlannedFault]) -> None:
        """Begin and end each fault by the plan; end all active faults after an error or a Ctrl-C."""
        order = count()
        agenda = [(step.at_s, next(order), step, True) for step in steps]
        heapq.heapify(agenda)
        active: dict[int, tuple[PlannedFault, float]] = {}
        began_s = self._watch.now_s
        try:
            while agenda:
                self._stage.revive()
                at_s, number, step, begins = heapq.heappop(agenda)
                self._stage.halt.wait(max(0.0, began_s + at_s - self._watch.now_s))
                if begins:
                    active[number] = (step, self._watch.now_s)
                    self._say(step.fault.label)
                    self._begin(step)
                    if step.for_s:
                        # The duration counts from now, as a fault may take long to begin.
                        heapq.heappush(agenda, (self._watch.now_s - began_s + step.for_s, number, step, False))
                        continue
                self._end(*active.pop(number))
        finally:
            for step, since_s in active.values():
                self._end(step, since_s)

    def _begin(self, step: PlannedFault) -> None:
        try:
            step.fault.begin(self._stage)
        except (psycopg.Error, OSError, subprocess.SubprocessError) as error:
            raise BrewError(f"{step.fault.label} can't be done: {' '.join(str(error).split())}") from error

    def _end(self, step: PlannedFault, since_s: float) -> None:
        step.fault.end(self._stage)
        if step.for_s:
            self._say(f"over: {step.fault.label}")
        end_s = self._watch.now_s if step.for_s else since_s
        self._act.faults.append(FaultSpan(since_s, end_s, step.fault.label, step.fault.nodes))

    def _catch_up(self) -> None:
        last_s = began_s = self._watch.now_s

        def through() -> bool:
            nonlocal last_s
            if self._watch.has_settled(began_s):
                return True
            if self._watch.now_s - last_s > _SETTLE_S:
                last_s = self._watch.now_s
                for settle in self._stage.while_waiting:
                    settle()
            return False

        try:
            self._await("every effect", through, _CATCH_UP_S)
        except BrewError as error:
            self._result.findings.append(str(error))

    def _measure(self, told: History, hastily: History, healed_s: float, load_end_s: float) -> None:
        result, act = self._result, self._act
        act.samples, act.ownerships = self._watch.samples, self._watch.ownerships
        result.acknowledged = told.count(CallOutcome.ACKNOWLEDGED) + hastily.count(CallOutcome.ACKNOWLEDGED)
        result.failed = told.count(CallOutcome.FAILED)
        result.unknown = told.count(CallOutcome.UNKNOWN) + hastily.count(CallOutcome.UNKNOWN)
        result.standstill_s = self._watch.longest_standstill_s(load_end_s)
        result.slowest_answer_s = told.slowest_s
        result.catch_up_s = self._watch.catch_up_s(healed_s, backlog=max(2.0, self._plan.rate))
        with homes.opened(self._settings) as found:
            connection = found.story
            cancels = told.cancels + hastily.cancels
            contradicted = verdict.compare(connection, told.calls + hastily.calls, cancels)
            result.lost = len(contradicted.lost)
            result.refused = result.failed + hastily.count(CallOutcome.FAILED)
            result.refused_written = len(contradicted.refused_written)
            result.written = contradicted.written
            if self._plan.cancel:
                result.cancels = verdict.counted(cancels, contradicted)
            result.findings += contradicted.findings()
            for home in found.homes:
                with found.to(home) as there:
                    result.findings += verdict.wrongly_parked(there, cause=record_faults.REFUSING)
            result.slowest_s = databases.slowest_s(found)

    def _judge(self, fell: Sequence[str]) -> None:
        result = self._result
        verification = verify(self._settings, late_s=0)  # all effects were waited for: none may be on its way
        result.repeats = verification.facts.repeats
        result.missing, result.doubled = _effects(verification)
        for check in verification.checks:
            result.findings += [f"{check.claim}: {offender}" for offender in check.offenders]
        effects = sum(check.examined for check in _of_groups(verification, "doubled"))
        if verification.facts.ledger < effects:
            known = f"{verification.facts.ledger} of {effects}"
            result.findings.append(f"the ledger has {known} effects: a doubled one may be missed")
        if result.refused == 0:
            result.findings.append("no call was refused: whether such a call writes nothing was not tested")
        if result.acknowledged == 0:
            result.findings.append("no order was acknowledged: nothing was tested")
        if result.cancels and result.cancels.acknowledged == 0:
            result.findings.append("no cancel was acknowledged: cancels were not tested")
        if result.cancels and result.cancels.refused == 0:
            result.findings.append("no cancel was refused: whether such a cancel writes nothing was not tested")
        result.findings += fell

    def _say(self, text: str) -> None:
        self._act.events.append(ActEvent(self._watch.now_s, text))
        self._tell(self._watch.now_s, text)

    def _await(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        try:
            wait_until(what, condition, timeout_s=timeout_s)
        except TimeoutError as error:
            raise BrewError(f"{self._result.scenario}: {error} ({self._watch.newest})") from None
