from hypothesis import given
from hypothesis import strategies as st

from domain.bitmap import Bitmap


@given(st.sets(st.integers(0, 2_000)))
def test_a_bitmap_is_a_set(numbers: set[int]) -> None:
    bitmap = Bitmap()
    for number in numbers:
        bitmap = bitmap.with_bit(number).with_bit(number)
    travelled = Bitmap.model_validate_json(bitmap.model_dump_json())
    assert len(travelled) == len(numbers)
    assert {number for number in range(2_001) if number in travelled} == numbers


@given(st.sets(st.integers(0, 2_000)))
def test_a_bitmap_gives_back_what_it_was_made_of(numbers: set[int]) -> None:
    bitmap = Bitmap.of(numbers)
    assert bitmap.numbers == tuple(sorted(numbers))
    assert len(bitmap) == len(numbers)
    assert {number for number in range(2_001) if number in bitmap} == numbers
    assert set(bitmap.with_bit(0).numbers) == numbers | {0}


def test_neighbours_far_from_zero_take_little() -> None:
    assert len(Bitmap.of(range(6_600, 6_800)).model_dump_json()) < 100
