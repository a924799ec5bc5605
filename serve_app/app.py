"""`serve_app.app:build` is the import_path of a Serve config file; `args` are the fields of ServeOptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from bigmodel.errors import ConfigError
from bigmodel.predictor import stored_weights
from serve_app import ray_host
from serve_app.keys import digests, is_undecided
from serve_app.options import ServeOptions, read_options
from serve_app.replica import Replica


def build(args: Mapping[str, Any]) -> Application:
    """The application of one model. Raises ConfigError when `args` are wrong, or leave an endpoint open by accident."""
    options = read_options(args, "args")
    refuse_open(options, ray_host.listens())
    return application(options)


def refuse_open(options: ServeOptions, host: str | None) -> None:
    """ConfigError where others reach Serve's host, and nothing was said of keys. None is the host of no Serve."""
    if host is not None and is_undecided(options.key_file, host):
        where = "every interface" if host in ("", "0.0.0.0", "::") else host
        raise ConfigError(
            f"args: Serve listens on {where} (http_options), where others reach it. Name a key_file, or key_file: none "
            "to let everybody ask"
        )


def application(options: ServeOptions) -> Application:
    deployment: Any = serve.deployment(
        serve.ingress(None)(Replica),
        name=options.word,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        autoscaling_config=autoscaling(options),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_waiting,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=options.retry_after_s),
        max_constructor_retry_count=2,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    bound: Application = deployment.bind(options, stored_weights(Path(options.model)), digests(options.key_file))
    return bound


def autoscaling(options: ServeOptions) -> AutoscalingConfig:
    """On ongoing requests. Delays are not shorter than the window looked back on, steps at most double."""
    look_back_s = max(1.0, min(options.upscale_delay_s, 10.0))
    return AutoscalingConfig(
        min_replicas=options.min_replicas,
        initial_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=options.target_ongoing_requests,
        look_back_period_s=look_back_s,
        metrics_interval_s=min(1.0, look_back_s / 2),
        upscale_delay_s=max(options.upscale_delay_s, look_back_s),
        downscale_delay_s=max(options.downscale_delay_s, look_back_s),
        upscaling_factor=1.0,
        downscaling_factor=1.0,
    )
