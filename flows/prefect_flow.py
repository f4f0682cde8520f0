"""A run as Prefect sees it: a flow named after the plan, and a task run for every step, undo and commit."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from httpx import HTTPError
from prefect import Flow, Task
from prefect import tags as tagged
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State as PrefectState
from prefect.context import TagsContext, TaskRunContext
from prefect.exceptions import MissingContextError, PrefectException
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.context import Event
from flows.executor import Executor, Finished, ThreadExecutor, Work
from planvirt.errors import PlanvirtError
from planvirt.journal.transitions import RunState

_QUIET = frozenset(  # too many, or said by the state of the task run
    {"progress", "begin", "done", "undo", "undone", "commit", "committed"}
)
_DRAWN = 10  # arrows to a task run: they are for the eye, and Prefect pays for each
_GLANCE = 0.1  # seconds
_FAREWELL = 10.0  # seconds that Prefect gets to note the end of a run that has ended

_log = logging.getLogger(__name__)

# When its server is gone, Prefect complains on standard error of every event that it cannot send. The run goes on, and
# its end tells the user that Prefect's picture of it is incomplete.
logging.getLogger("prefect._internal").setLevel(logging.CRITICAL)
logging.raiseExceptions = False


class FlowRefused(PlanvirtError):
    """Prefect did not let the flow begin."""


class PrefectExecutor:
    """Each piece of work is a Prefect task run; its retries are Prefect's, its waiting is its own.

    Prefect shows, it does not decide: work that it cannot begin, as its server is gone, is carried out without it.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._tags = tuple(tags)
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._errors: dict[str, BaseException | None] = {}
        self._plain = ThreadExecutor(finished=self.finished)

    def submit(self, work: Work, after: Sequence[str]) -> None:
        """Begin the work as a task run of the current flow run."""
        count = 0

        def attempt() -> None:
            nonlocal count
            count += 1
            _put_on([*self._tags, *work.tags])
            try:
                work.attempt(count)
                self._errors[work.key] = None
            except BaseException as error:
                self._errors[work.key] = error
                raise

        def end(future: PrefectFuture[Any]) -> None:
            if count == 0:
                self._plain.submit(work, ())
            else:
                self._end(work, future)

        task: Task[[], None] = Task(
            attempt,
            name=work.name,
            task_run_name=work.name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=work.attempts - 1,
            retry_delay_seconds=0,
            retry_condition_fn=lambda _task, _run, _state: _again(work, self._errors.get(work.key)),
        )
        self._errors.pop(work.key, None)
        # An undo follows other undos whatever became of them; Prefect would refuse to run it after one that failed.
        followed = [self._futures[key] for key in after if key in self._futures and self._errors.get(key) is None]
        try:
            future = task.submit(wait_for=followed[:_DRAWN], return_state=False)
        except (PrefectException, HTTPError, RuntimeError):
            self._plain.submit(work, ())
            return
        self._futures[work.key] = future
        future.add_done_callback(end)

    def close(self) -> None:
        """Wait for what runs without Prefect."""
        self._plain.close()

    def _end(self, work: Work, future: PrefectFuture[Any]) -> None:
        error = self._errors.get(work.key)
        try:
            future.wait()  # it has ended; this takes its final state from the thread instead of asking the server
            if error is None and not future.state.is_completed():
                _log.warning("Prefect ended the task run %s as %s", work.name, future.state.name)
        except Exception as raised:  # noqa: BLE001 - the work is done; only its picture is not
            _log.warning("Prefect could not end the task run %s: %s", work.name, raised)
        self.finished.put(Finished(work.key, error))


def _put_on(tags: Sequence[str]) -> None:
    """Tag the task run that this is called in.

    A task that is born with tags asks the server, whenever the last answer is older than five seconds, for slots of the
    tags' concurrency limits. With SQLite that request collides with the server's own writing about the step before, is
    answered by 503, and tried again two seconds later.
    """
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.tags = sorted(set(tags))


def _again(work: Work, error: BaseException | None) -> bool:
    return error is not None and work.again(error)


def run_as_flow(
    body: Callable[[Executor, str], tuple[RunState, PlanvirtError | None]],
    *,
    name: str,
    run_name: str,
    tags: Sequence[str],
    workers: int,
    parameters: dict[str, Any],
    glance: Callable[[], None],
    good: Collection[RunState] = (RunState.SUCCEEDED,),
) -> tuple[RunState, PlanvirtError | None]:
    """Call `body` with an executor and the flow run's id, inside a flow run that ends as the run does.

    The flow has a thread of its own, so that signals reach the main thread whatever Prefect waits for; `glance` is
    called there all the while. Raises what `body` raises, and FlowRefused when Prefect does not let it begin.
    """
    ended: list[tuple[RunState, PlanvirtError | None]] = []
    raised: list[BaseException] = []

    def plan_flow(plan: str, run: str, commit: str, inputs: dict[str, Any]) -> PrefectState[None]:  # noqa: ARG001
        executor = PrefectExecutor(tags)
        try:
            with TagsContext(current_tags=set()):  # the flow run has them; its task runs get theirs in _put_on
                ended.append(body(executor, str(flow_run.id)))
        except BaseException as error:  # noqa: BLE001 - raised again outside of Prefect, which would swallow it
            raised.append(error)
            return Failed(message=f"the run did not end: {type(error).__name__}")
        finally:
            executor.close()
        return _end_state(*ended[0], good)

    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)
    flow: Flow[Any, PrefectState[None]] = Flow(
        plan_flow,
        name=name,
        flow_run_name=run_name,
        task_runner=runner,  # type: ignore[arg-type]  # Prefect types its own runner too narrowly
        persist_result=False,
        validate_parameters=False,
    )
    refusals: list[Exception] = []

    def under_prefect() -> None:
        try:
            with tagged(*tags), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                flow(**parameters, return_state=True)
        except Exception as error:  # noqa: BLE001 - told below, unless the run ended all the same
            refusals.append(error)

    thread = threading.Thread(target=under_prefect, name="flow", daemon=True)
    thread.start()
    over: float | None = None
    while thread.is_alive() and (over is None or time.monotonic() < over):
        thread.join(_GLANCE)
        glance()
        if over is None and (ended or raised):
            over = time.monotonic() + _FAREWELL
    if raised:
        raise raised[0]
    if ended:
        return ended[0]
    error = refusals[0] if refusals else None
    raise FlowRefused(
        "cannot begin the flow: Prefect refused it",
        details=f"{type(error).__name__}: {error}" if error else "it did not call the flow",
        resolution="see whether its server answers with 'planvirt doctor'",
    )


def _end_state(state: RunState, error: PlanvirtError | None, good: Collection[RunState]) -> PrefectState[Any]:
    message = state.replace("_", " ") if error is None else f"{state.replace('_', ' ')}: {error}"
    if error is not None and error.resolution:
        message += f" — {error.resolution}"
    if state in good:
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
