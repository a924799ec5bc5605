"""What leans on Ray Train's private parts: it starts sooner, does not wait for ever, and leaves no room taken."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ASK_S = 0.1
"""Between two questions of a waiting controller whether there is room."""


def lighter(trainer: Any) -> Any:
    """A trainer of Ray Train without the actors that bigmodel has no use for, each a process that takes seconds to
    start: for data sets, though there are none; and, on a Ray of our own, for room that only a dashboard tells of.
    Ctrl-C is left to the caller: Ray Train would end the workers before they have saved."""
    unused = {"DatasetsCallback"} | (set() if os.environ.get("RAY_ADDRESS") else {"PlacementGroupCleanerCallback"})
    usual = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [one for one in usual() if type(one).__name__ not in unused]
    trainer._register_sigint_handler = lambda controller: None
    begin = trainer._initialize_and_run_controller
    trainer._initialize_and_run_controller = lambda **parts: begin(**_quick_to_recover(parts))
    return trainer


def _quick_to_recover(parts: dict[str, Any]) -> dict[str, Any]:
    """What a controller is made of, so that it waits neither for a lost node nor for its knowledge of nodes to be
    renewed, which is every twenty seconds."""
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
    from ray.train.v2._internal.util import time_monotonic

    class Fresh(ElasticScalingPolicy):
        def _get_reserved_resources(self) -> Any:
            since = time_monotonic() - self._latest_reserved_resources_query_time
            if since >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
                self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            return super()._get_reserved_resources()

    elastic = isinstance(parts["scaling_policy"], ElasticScalingPolicy)
    policy = Fresh(parts["scaling_policy"].scaling_config) if elastic else parts["scaling_policy"]
    return parts | {"train_fn_ref": Carried(parts["train_fn_ref"].get()), "scaling_policy": policy}


class Carried:
    """In place of a reference: the object itself. A new node would ask a lost one for what the object store has of it,
    and ten seconds later another."""

    def __init__(self, it: Any) -> None:
        self._it = it

    def get(self) -> Any:
        return self._it


def patience(seconds: float) -> Any:
    """For Ray Train's controller, which would wait for ever for the least number of workers: a TimeoutError ends it
    once none have run for so long."""
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.state import PreemptingState, RunningState

    class Patience(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            self._last_ran = time.monotonic()

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if any(isinstance(state, (RunningState, PreemptingState)) for state in (previous_state, current_state)):
                self._last_ran = time.monotonic()
            elif not current_state.is_terminal() and time.monotonic() - self._last_ran > seconds:
                raise TimeoutError(f"there was no room for them for {seconds:g} s")
            if current_state is previous_state:  # no room yet: the controller would ask again at once, on a whole core
                time.sleep(ASK_S)

    return Patience()


def at_once() -> Any:
    """For Ray Train's workers, which are asked to end and waited for, the dead ones too: they have nothing to do then,
    and are killed."""
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class AtOnce(WorkerGroupCallback):
        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            for worker in worker_group.get_workers():
                ray.kill(worker.actor)

    return AtOnce()


def leaving() -> bool:
    """Of a worker of Ray Train: whether a node of its group will be taken away. Ray's public question is a barrier of
    all workers."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def request(trainer: Any, noted: Path) -> None:
    """Note by what name its controller will ask for room; and withdraw what one asked for that was noted before and has
    died, for itself or with its command: it would be counted as taken for three minutes more."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    if noted.exists():
        ray.get(get_or_create_autoscaling_coordinator().cancel_request.remote(noted.read_text("utf-8")))
    with suppress(OSError):  # it may be that the disk is full
        noted.write_text(f"train-{trainer.train_run_context.run_id}", "utf-8")


def release_orphans() -> None:
    """Give back the room that actors of this process's job had reserved and that have died since: Ray itself does so
    where it has a dashboard to ask."""
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for entry in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(entry)
        removed = found.state == PlacementGroupTableData.REMOVED
        if found.creator_actor_dead and found.creator_job_id.hex() == job and not removed:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))
