"""One of several workers, in a process of its own: it meets the others, trains, and says how that ended."""

from __future__ import annotations

import os
import platform
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bigmodel.errors import ConfigError, Interrupted, Preempted, TrainingError, last_line
from bigmodel.experiment import Experiment
from bigmodel.training import loop
from bigmodel.training.run import STOP
from bigmodel.training.trainer import Worker

SHARED = "the output folder and data.cache must lie on storage that all nodes of the cluster share (BIGMODEL_HOME)"
LOOPBACK = "127.0.0.1"  # the address of each worker on a Ray of our own


def train(
    experiment: dict[str, Any],
    prepared: str,
    run: str,
    rank: int,
    world: int,
    device: str,
    threads: int,
    host: str,
    port: int,
    leaves: Callable[[], bool],
) -> dict[str, Any]:
    """`loop.train` of this worker, which meets the others at the first one's host and port. -> what it found, or
    `error`, `interrupted`, `preempted`, each with what is said about it, which are answers, or `lost` with why this
    worker has to begin anew with the others."""
    try:
        wanted = Experiment.model_validate(experiment)
        if world > 1:
            if device != "cpu":
                torch.cuda.set_device(device)
            timeout = timedelta(seconds=wanted.train.timeout)
            if host == LOOPBACK:  # else gloo listens wherever this machine's name leads
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            listens = _listening(host, port) if rank == 0 else None
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, world, rank == 0, timeout, master_listen_fd=listens
            )
            dist.init_process_group("gloo" if device == "cpu" else "nccl", None, timeout, world, rank, store)
        if blind := _without(Path(prepared), rank, world):
            return {"error": f"{prepared} is not to be seen on {', '.join(blind)}: {SHARED}"}
        worker = Worker(rank, world, device, threads, ray=True, leaves=leaves)
        found = loop.train(wanted, Path(prepared), Path(run), worker, lambda event: None)
    except (TrainingError, ConfigError) as e:  # a loss that is not a number would be so again
        return {"error": str(e)}
    except Preempted as e:
        found = {"preempted": str(e)}
    except Interrupted as e:
        asked = (Path(run) / STOP).exists()  # else it was a signal to this worker alone
        found = {"interrupted" if asked else "lost": str(e)}
    except BaseException as e:
        traceback.print_exc()
        return {"lost": last_line(e)}
    if world > 1 and device != "cpu" and "lost" not in found:
        dist.destroy_process_group()  # NCCL may still be sending
    return found


def _listening(host: str, port: int) -> int:
    """A socket that listens at this address alone, where TCPStore's own would at all of them. -> its descriptor"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, reuse_port=True).detach()


def _without(path: Path, rank: int, world: int) -> list[str]:
    """The workers' machines that do not see a folder: all learn it, so that none waits for those."""
    seen: list[str | None] = [None if path.is_dir() else platform.node()] * world
    if world > 1:
        dist.all_gather_object(seen, seen[rank])
    return sorted({name for name in seen if name})
