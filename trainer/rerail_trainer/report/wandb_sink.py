"""Weights & Biases; needs the extra `sinks`. WANDB_MODE=offline works without a network."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import wandb

from rerail_api.contract import Env
from rerail_trainer.config import Config, config_hash

_INIT_SECONDS = 60
"""How long a start may wait for the service."""


class WandbRun:
    """A sink. All starts of one job continue one run; without a job, every start is a run of its own."""

    def __init__(self, config: Config) -> None:
        job_uid = os.environ.get(Env.JOB_UID, "")
        self._run = wandb.init(
            project=config.metrics.wandb,
            name=os.environ.get(Env.JOB) or None,
            id=f"{job_uid}-{config_hash(config)[:8]}" if job_uid else None,
            resume="allow" if job_uid else None,
            config=asdict(config),
            settings=wandb.Settings(init_timeout=_INIT_SECONDS, console="off", silent=True),
        )
        # Steps may be made again after a restart; wandb's own counter only grows.
        self._run.define_metric("*", step_metric="step")

    def step(self, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values))

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        step = numbers.pop("step", None)
        told = {f"{name}/{key}": value for key, value in numbers.items()}
        if step is not None:
            told["step"] = step
        self._run.log(told)

    def close(self) -> None:
        self._run.finish()
