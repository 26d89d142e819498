"""Which processes die in a round, when, and for how long: all of it follows from the round's seed."""

import random
from dataclasses import dataclass
from typing import Self

from cli.stack import ALL_SERVICES

SPREAD = {"archive": 440, "retrieve": 320}
"""Requests that a job of a round sends to the stores when nothing dies, or a few less: blows fall within them."""

BLOWS = {"archive": (2, 3), "retrieve": (1, 2)}
"""Fewest and most blows in a job."""

PAIR = 0.25
"""Share of blows that hit two processes at once."""

BEFOREHAND = 0.2
"""Share of jobs that are asked for when the first victims are down already."""

SHORT_S, LONG_S = 1.0, 5.0
"""Most victims come back soon; one in four stays away for longer than a heartbeat may be missing."""


VICTIMS = tuple(name for name in ALL_SERVICES if name != "idp")
"""Neither an archive nor a retrieval needs the identity provider."""


@dataclass(frozen=True, slots=True)
class Blow:
    """Processes that are killed together."""

    victims: tuple[str, ...]
    at: int
    """Requests that the stores have had since the job was asked for; 0: before it is."""
    down_s: float
    """Time before they are started again."""

    def __str__(self) -> str:
        when = f"at request {self.at}" if self.at else "beforehand"
        return f"{' and '.join(self.victims)} {when}, for {self.down_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """The blows of one round."""

    seed: int
    archive: tuple[Blow, ...]
    retrieve: tuple[Blow, ...]

    @classmethod
    def of(cls, seed: int) -> Self:
        """Draw a round's blows; no process is hit twice before each has been hit once."""
        chance = random.Random(seed)  # noqa: S311 - a plan for tests, no secret
        bag = chance.sample(VICTIMS, len(VICTIMS)) * 2
        return cls(seed, _blows(chance, bag, "archive"), _blows(chance, bag, "retrieve"))

    def __str__(self) -> str:
        jobs = {"archive": self.archive, "retrieve": self.retrieve}
        told = "; ".join(f"{job}: {', then '.join(map(str, blows))}" for job, blows in jobs.items())
        return f"seed {self.seed}: {told}"


def _blows(chance: random.Random, bag: list[str], job: str) -> tuple[Blow, ...]:
    fewest, most = BLOWS[job]
    places = sorted(chance.randrange(1, SPREAD[job]) for _ in range(chance.randint(fewest, most)))
    if chance.random() < BEFOREHAND:
        places[0] = 0
    return tuple(_blow(chance, bag, at) for at in places)


def _blow(chance: random.Random, bag: list[str], at: int) -> Blow:
    victims = tuple(bag.pop() for _ in range(2 if chance.random() < PAIR else 1))
    down_s = chance.uniform(0, SHORT_S) if chance.random() < 0.75 else chance.uniform(SHORT_S, LONG_S)
    return Blow(victims, at, down_s)
