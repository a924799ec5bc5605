"""What a person can ask of a served model: the `args` of the Serve config file and the options of `bigmodel serve`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bigmodel.complaints import complaint
from bigmodel.errors import ConfigError, did_you_mean
from serve_app.keys import AUTO

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DIGITS = 4  # after the point, of a resource


class ServeOptions(BaseModel):
    """One model, one Serve application."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """The model directory; every node that runs a replica must see it."""
    name: str = ""
    """The word in the URL, /models/<name>/predict. Default: the run's directory name."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: what training recorded in bigmodel.json."""
    key_file: str = AUTO
    """A file of keys, one a line; a request must show one: `Authorization: Bearer KEY`. `none` lets everybody ask. auto
    asks for no key where only this machine reaches the endpoint, and else for the one in ~/.bigmodel/keys, which
    `bigmodel serve` makes; a Serve config file must then name a file, or none."""

    min_replicas: int = Field(default=1, ge=1)
    """Replicas that always run."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas at most, as requests come."""
    target_ongoing_requests: float = Field(default=32, gt=0)
    """Requests per replica, waiting or running, that autoscaling aims at. In-replica batching makes 32 cheap."""
    upscale_delay_s: float = Field(default=5, ge=0)
    """Seconds of too many requests before a replica is added."""
    downscale_delay_s: float = Field(default=120, ge=0)
    """Seconds of too few requests before one is taken away."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray sets aside for each replica, which computes with this many threads. If it is not given, `bigmodel
    serve` on a Ray of its own shares the machine's CPUs among the replicas."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs for each replica; the model runs on the GPU if there is any part of one."""

    max_inputs: int = Field(default=64, ge=1)
    """Texts, or other inputs, in one request."""
    max_body_bytes: int = Field(default=1 << 20, ge=1)
    """Bytes of one request's body."""
    max_body_s: float = Field(default=30, gt=0)
    """Seconds in which a request's body must have come."""
    max_waiting: int = Field(default=1024, ge=1)
    """Inputs that may wait in one replica; beyond it the answer is 503 with Retry-After."""
    retry_after_s: int = Field(default=1, ge=1)
    """What Retry-After then says, in seconds."""
    max_batch_tokens: int = Field(default=0, ge=0)
    """Tokens in one call of the model, padding included where it computes padding. 0 is what suits the device: 4,096 on
    a CPU, 16,384 on a GPU."""

    @field_validator("name")
    @classmethod
    def _name_fits_a_url(cls, name: str) -> str:
        if name and not NAME.fullmatch(name):
            raise ValueError(
                "may have letters, digits, '.', '_' and '-', at most 63, and starts with a letter or digit"
            )
        return name

    @field_validator("num_cpus", "num_gpus")
    @classmethod
    def _ray_can_count(cls, each: float) -> float:
        if round(each, DIGITS) != each:
            raise ValueError(f"is {each:g}, but may have {DIGITS} digits after the point: Ray counts no finer")
        return each

    @field_validator("num_gpus")
    @classmethod
    def _gpus_above_one_are_whole(cls, each: float) -> float:
        if each > 1 and not each.is_integer():
            raise ValueError(f"is {each:g}, but must be a whole number where it is above 1")
        return each

    @model_validator(mode="after")
    def _limits_fit_together(self) -> ServeOptions:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        scales = self.max_replicas > self.min_replicas
        if scales and self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests ({self.target_ongoing_requests:g}) is above twice max_waiting "
                f"({self.max_ongoing_requests}), which a replica never has: none would be added"
            )
        if self.max_waiting < self.max_inputs:
            raise ValueError(f"max_waiting ({self.max_waiting}) is below max_inputs ({self.max_inputs})")
        return self

    @property
    def max_ongoing_requests(self) -> int:
        """Of one replica, waiting or running. The endpoint refuses first, in JSON; this stands behind it."""
        return 2 * self.max_waiting

    @property
    def word(self) -> str:
        """The model's name in URLs: `name`, or the directory's (the run's, where the directory is called model)."""
        path = Path(self.model).absolute()
        found = self.name or (path.parent.name if path.name == "model" else path.name)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", found).strip("-._") or "model"


def read_options(args: Mapping[str, Any], where: str = "serve options") -> ServeOptions:
    """Checked options. Raises ConfigError with every mistake, one a line."""
    try:
        return ServeOptions.model_validate(dict(args))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_sentence(e)}" for e in error.errors(include_url=False))) from None


def _sentence(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        fields = ServeOptions.model_fields
        return f"there is no '{key}'.{did_you_mean(key, fields)} Options: {', '.join(fields)}"
    if error["type"] == "missing":
        return f"'{key}' is missing. It names the model directory." if key == "model" else f"'{key}' is missing."
    return complaint(key, error).strip()
