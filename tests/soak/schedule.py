"""What a round does, made of its seed alone: ranks, cores, settings, the steps, and who is killed in which of them.

Not here: what an operation does with its step, which it draws from the same seed (scene.py).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from soak.operations import DEADLY, OPERATIONS


@dataclass(frozen=True)
class Step:
    """One operation of all ranks, in which one may be killed."""

    number: int
    operation: str
    victim: int | None = None  # rank in the job
    delay: float = 0.0  # seconds from when the victim comes to this step

    def __str__(self) -> str:
        killed = "" if self.victim is None else f", rank {self.victim} killed after {self.delay * 1e3:.1f} ms"
        return f"step {self.number}: {self.operation}{killed}"


@dataclass(frozen=True)
class Schedule:
    """A round."""

    seed: int
    size: int
    cores: int | None  # that all ranks share; None: all there are
    environ: Mapping[str, str]
    steps: tuple[Step, ...]

    @property
    def victims(self) -> list[int]:
        """Ranks that do not live to the end."""
        return [step.victim for step in self.steps if step.victim is not None]

    def __str__(self) -> str:
        cores = "all" if self.cores is None else self.cores
        settings = " ".join(f"{name}={value}" for name, value in self.environ.items())
        head = f"seed {self.seed}: {self.size} ranks on {cores} cores, {settings}"
        return "\n  ".join([head, *map(str, self.steps)])


def schedule(seed: int) -> Schedule:
    """The round of that seed: the same in every process."""
    luck = random.Random(seed)
    size = luck.choice([1, 2, 2, 3, 3, 4, 5, 6])
    environ = {"XCCL_DIRECT": luck.choice("01")}
    if luck.random() < 0.3:
        environ["XCCL_EAGER_LIMIT"] = luck.choice(["64", "1K", "64K"])
    if luck.random() < 0.2:
        environ["XCCL_HUGE_PAGES"] = "0"
    cores = luck.choice([None, None, 1, 2])
    number_of_steps = luck.randint(10, 40)
    deaths = luck.choice([0, 0, 1, 1, 2, 3]) if size > 1 else 0
    victims = luck.sample(range(size), min(deaths, size - 1))
    dies = dict(zip(luck.sample(range(number_of_steps), len(victims)), victims, strict=True))
    steps = []
    for number in range(number_of_steps):
        victim = dies.get(number)
        names = list(OPERATIONS) if victim is None else DEADLY
        delay = 0.0 if victim is None or luck.random() < 0.2 else luck.uniform(0, 0.02)
        steps.append(Step(number, luck.choice(names), victim, delay))
    return Schedule(seed, size, cores, environ, tuple(steps))
