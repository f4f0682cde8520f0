"""A run as Prefect sees it: a flow named after the plan, and a task run for every step, undo and commit."""

import logging
import queue
from collections.abc import Callable, Sequence
from typing import Any

from httpx import HTTPError
from prefect import Flow, Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State as PrefectState
from prefect.exceptions import MissingContextError, PrefectException
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.context import Event
from flows.executor import Executor, Finished, Work
from planvirt.errors import PlanvirtError
from planvirt.journal.transitions import RunState

_QUIET = frozenset({"progress"})  # too many to log


class PrefectExecutor:
    """Each piece of work is a Prefect task run; its retries are Prefect's, its waiting is its own."""

    def __init__(self, tags: Sequence[str]) -> None:
        self.finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._tags = tuple(tags)
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._errors: dict[str, BaseException | None] = {}

    def submit(self, work: Work, after: Sequence[str]) -> None:
        """Begin the work as a task run of the current flow run."""
        count = 0

        def attempt() -> None:
            nonlocal count
            count += 1
            try:
                work.attempt(count)
                self._errors[work.key] = None
            except BaseException as error:
                self._errors[work.key] = error
                raise

        task: Task[[], None] = Task(
            attempt,
            name=work.name,
            task_run_name=work.name,
            tags=[*self._tags, *work.tags],
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=work.attempts - 1,
            retry_delay_seconds=0,
            retry_condition_fn=lambda _task, _run, _state: _again(work, self._errors.get(work.key)),
        )
        self._errors.pop(work.key, None)
        # An undo follows other undos whatever became of them; Prefect would refuse to run it after one that failed.
        followed = [self._futures[key] for key in after if key in self._futures and self._errors.get(key) is None]
        future = task.submit(wait_for=followed, return_state=False)
        self._futures[work.key] = future
        future.add_done_callback(lambda done: self._end(work, done))

    def _end(self, work: Work, future: PrefectFuture[Any]) -> None:
        error = self._errors.get(work.key)
        try:
            future.wait()  # it has ended; this takes its final state from the thread instead of asking the server
            if error is None and not future.state.is_completed():
                error = RuntimeError(f"Prefect ended the task run: {future.state.message or future.state.name}")
        except BaseException as raised:  # noqa: BLE001 - whoever waits for the work must hear of every end
            error = error or raised
        self.finished.put(Finished(work.key, error))


def _again(work: Work, error: BaseException | None) -> bool:
    return error is not None and work.again(error)


def run_as_flow(
    body: Callable[[Executor, str], tuple[RunState, PlanvirtError | None]],
    *,
    name: str,
    run_name: str,
    description: str,
    tags: Sequence[str],
    workers: int,
    parameters: dict[str, Any],
) -> tuple[RunState, PlanvirtError | None]:
    """Call `body` with an executor and the flow run's id, inside a flow run that ends as the run does."""
    outcome: list[tuple[RunState, PlanvirtError | None]] = []

    def plan_flow(plan: str, run: str, commit: str, inputs: dict[str, Any]) -> PrefectState[None]:  # noqa: ARG001
        state, error = body(PrefectExecutor(tags), str(flow_run.id))
        outcome.append((state, error))
        return _end_state(state, error)

    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)
    flow: Flow[Any, PrefectState[None]] = Flow(
        plan_flow,
        name=name,
        flow_run_name=run_name,
        description=description or None,
        task_runner=runner,  # type: ignore[arg-type]  # Prefect types its own runner too narrowly
        persist_result=False,
        validate_parameters=False,
    )
    from prefect import tags as tagged

    try:
        with tagged(*tags):
            ended = flow(**parameters, return_state=True)
    except (PrefectException, HTTPError) as error:
        if outcome:
            return outcome[0]  # the run had ended; only Prefect does not know
        raise PlanvirtError(
            "cannot go on: the Prefect server failed",
            details=f"{type(error).__name__}: {error}",
            resolution="see whether it answers with 'planvirt doctor'; 'planvirt show last' tells how far the run came",
        ) from error
    if not outcome:
        raise PlanvirtError(
            "cannot run the flow: Prefect refused it",
            details=str(ended.message or ended.name),
            resolution="see whether its server answers with 'planvirt doctor'",
        )
    return outcome[0]


def _end_state(state: RunState, error: PlanvirtError | None) -> PrefectState[Any]:
    message = state.replace("_", " ") if error is None else f"{state.replace('_', ' ')}: {error}"
    if error is not None and error.resolution:
        message += f" — {error.resolution}"
    if state == RunState.SUCCEEDED:
        return Completed(message=message)
    if state == RunState.CANCELLED:
        return Cancelled(message=message)
    return Failed(message=message)


def log_event(event: Event) -> None:
    """Put what happens in a step into the log of its task run."""
    if event.kind in _QUIET:
        return
    try:
        logger = get_run_logger()
    except MissingContextError:
        return
    level = logging.ERROR if event.kind in ("failed", "undo-failed") else logging.INFO
    logger.log(level, "%s", event)
