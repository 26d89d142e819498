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
