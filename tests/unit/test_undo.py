import pytest

from workflows.undo import Step, UndoStack


def step(done: list[str], name: str) -> Step:
    async def undo() -> None:
        done.append(name)

    return undo


async def test_the_last_deed_is_taken_back_first_and_a_second_look_takes_back_again() -> None:
    done: list[str] = []
    stack = UndoStack()
    stack.push(step(done, "write"))
    stack.push(step(done, "register"))

    await stack.unwind()
    await stack.unwind()

    assert done == ["register", "write", "register", "write"]


async def test_behind_the_commit_point_nothing_is_taken_back() -> None:
    done: list[str] = []
    stack = UndoStack()
    assert not stack
    stack.push(step(done, "write"))
    assert stack

    stack.clear()
    await stack.unwind()

    assert not stack
    assert done == []


async def test_a_step_that_fails_ends_the_undo_so_that_nobody_believes_it_complete() -> None:
    done: list[str] = []
    stack = UndoStack()
    stack.push(step(done, "write"))

    async def fails() -> None:
        raise OSError("the LTS is away")

    stack.push(fails)
    with pytest.raises(OSError, match="away"):
        await stack.unwind()
    assert done == []
