"""Every step fails, is cancelled, runs twice and is not heard, one after the other; then the world is looked at.

Before the commit point nothing is left, and the next attempt finds nothing in its way. Behind it everything is whole.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clients.scicat import Catalogue
from domain.lifecycle import Phase
from tests.undo.mishaps import Mishap, Strike
from tests.undo.rows import End, Row, registered
from tests.undo.scene import FILES, STORIES, Case, Scene, Story, in_phase

pytestmark = [
    pytest.mark.xdist_group("undo"),
    # A cancel that crosses the end of its step: the SDK warns, which as an error would end the worker.
    pytest.mark.filterwarnings("ignore:Cannot find activity to cancel"),
]

SIDE_BY_SIDE = 6

QUICK = {
    "plan_dataset": [Mishap.MISTAKE],
    "open_block": [Mishap.LOST],
    "write_block": [Mishap.FAILS, Mishap.CANCELLED],
    "verify_block": [Mishap.TWICE],
    "register_blocks": [Mishap.CANCELLED, Mishap.LOST],
    "commit": [Mishap.CANCELLED, Mishap.CROSSED],
    "free_dataset": [Mishap.FAILS],
    "deliver_outcome": [Mishap.CROSSED],
    "join_datasets": [Mishap.CANCELLED],
}
"""What every run of the tests tries, all in the story of a plain archive."""

Trial = tuple[Row, Mishap, Story]


async def try_all(scene: Scene, trials: Iterable[Trial], *, worm: bool = False) -> None:
    """Try several side by side; name those that end otherwise than they should."""
    slots = asyncio.Semaphore(SIDE_BY_SIDE)
    failed: list[str] = []

    async def one(row: Row, mishap: Mishap, story: Story) -> None:
        async with slots:
            try:
                await attempt(scene, row, mishap, story, worm=worm)
            except (Exception, asyncio.CancelledError) as error:
                failed.append(f"{row.step}{row.where} {mishap}: {type(error).__name__}: {str(error)[:2_000]}")

    await asyncio.gather(*(one(*trial) for trial in trials))
    assert not failed, "\n\n".join(failed)


async def attempt(scene: Scene, row: Row, mishap: Mishap, story: Story, *, worm: bool) -> None:
    """One mishap of one step, a look at what is there, and the same again without."""
    end = row.end(mishap)
    if end is None:
        return
    case = await scene.play(story, Strike(row.step, mishap, behind=row.side))
    await scene.check(case, end, step=row.step, worm=worm)
    if end in (story.ends, End.ARCHIVED):
        return
    again = await scene.case(case.pid, case.files)
    await scene.submit(again, "retrieve" if row.retrieval else "archive")
    await scene.over(again)
    await scene.check(again, End.RETRIEVED if row.retrieval else End.ARCHIVED, worm=worm)


async def test_what_a_mishap_leaves_behind(scene: Scene) -> None:
    """The most telling ones; all others are tried by `make test-long`."""
    story = STORIES["an archive"]
    trials = [(row, mishap, story) for row in await registered() for mishap in QUICK.get(row.step, ())]
    assert len(trials) == sum(map(len, QUICK.values()))
    await try_all(scene, trials)


async def parts(scene: Scene, *, worm: bool = False) -> list[tuple[Row, Story]]:
    """Every registered step, and the first story in which it has a part."""
    played = await asyncio.gather(*map(scene.play, STORIES.values()), return_exceptions=True)
    failed = {story: repr(case) for story, case in zip(STORIES, played, strict=True) if isinstance(case, BaseException)}
    assert not failed
    cases = [case for case in played if isinstance(case, Case)]
    for story, case in zip(STORIES.values(), cases, strict=True):
        await scene.check(case, story.ends, worm=worm)
    found: list[tuple[Row, Story]] = []
    for row in await registered():
        for story, case in zip(STORIES.values(), cases, strict=True):
            if any(step == row.step and row.side in (None, behind) for step, behind in case.seen.steps):
                assert story.ends is row.ends, row
                found.append((row, story))
                break
        else:
            raise AssertionError(f"no story has a part for {row.step}{row.where}: write one, so that it can be struck")
    return found


@pytest.mark.long
async def test_every_step_has_a_part_in_a_story(scene: Scene) -> None:
    assert len(await parts(scene)) == len(await registered())


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mishap", Mishap)
async def test_every_step(scene: Scene, mishap: Mishap) -> None:
    await try_all(scene, [(row, mishap, story) for row, story in await parts(scene)])


async def test_a_registration_that_arrives_after_the_first_look_is_taken_back_by_the_second(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is cancelled while SciCat is asked; what was asked is done when the undo believes to be through."""
    register = Catalogue.add_datablock
    sent, arrive = asyncio.Event(), asyncio.Event()
    under_way: list[asyncio.Task[None]] = []

    async def late(catalogue: Catalogue, pid: str, **block: Any) -> None:
        async def post() -> None:
            await arrive.wait()
            await register(catalogue, pid, **block)

        under_way.append(asyncio.create_task(post()))
        sent.set()
        # No answer comes.
        await asyncio.Event().wait()

    case = await scene.case(await scene.lab.dataset(FILES), FILES)
    second_look = Strike("unregister_blocks", Mishap.FAILS, call=2)
    case.seen.strikes.append(second_look)
    archiving = scene.lab.archiving(case.pid)
    async with asyncio.timeout(60):
        with monkeypatch.context() as patched:
            patched.setattr(Catalogue, "add_datablock", late)
            await scene.submit(case)
            await sent.wait()
        await archiving.cancel()
        await second_look.reached.wait()
        assert await scene.lab.user.datablocks(case.pid) == []
        arrive.set()
        await asyncio.gather(*under_way)
        assert len(await scene.lab.user.datablocks(case.pid)) == 1
        await in_phase(archiving, Phase.PARKED)
        second_look.released.set()
        await archiving.signal("retry")
        await scene.over(case)
    await scene.check(case, End.CLEAN)


# A write-once store: what was written stays, and is no loss.


@asynccontextmanager
async def write_once(scene: Scene) -> AsyncGenerator[None]:
    await scene.lab.lts("POST", "/admin/worm", json={"on": True})
    try:
        yield
    finally:
        await scene.lab.lts("POST", "/admin/worm", json={"on": False})


async def test_what_a_write_once_store_keeps_is_listed_and_adopted(scene: Scene) -> None:
    """Nothing is written a second time."""
    async with write_once(scene):
        case = await scene.play(STORIES["an archive"], Strike("register_blocks", Mishap.CANCELLED))
        await scene.check(case, End.CLEAN, worm=True)
        left = await scene.lab.on_lts(case.pid)
        assert len(left) == 2
        received = await scene.received(case.pid)

        again = await scene.case(case.pid, case.files)
        await scene.submit(again)
        await scene.over(again)

        await scene.check(again, End.ARCHIVED)
        assert await scene.lab.on_lts(case.pid) == left
        assert await scene.received(case.pid) == received


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mishap", [Mishap.FAILS, Mishap.CANCELLED])
async def test_every_step_with_a_write_once_store(scene: Scene, mishap: Mishap) -> None:
    async with write_once(scene):
        trials = [(row, mishap, story) for row, story in await parts(scene, worm=True) if not row.retrieval]
        await try_all(scene, trials, worm=True)
