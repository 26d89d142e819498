"""A set of small numbers that travels as a short text."""

from collections.abc import Iterable

from domain.message import Message


class Bitmap(Message):
    """Immutable; 1,500 datablocks take 375 characters, 200 neighbours among any number take 50."""

    first: int = 0
    bits: str = "0"
    """Hexadecimal; bit n stands for the number `first` + n."""

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "Bitmap":
        """The set of these numbers, none of them negative."""
        listed = list(numbers)
        first = min(listed, default=0)
        bits = bytearray(max(listed, default=0) - first + 1)
        for number in listed:
            bits[number - first] = 1
        return cls(first=first, bits=f"{int(''.join(map(str, reversed(bits))), 2):x}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of them, in order."""
        digits = f"{int(self.bits, 16):b}"
        return tuple(self.first + n for n, digit in enumerate(reversed(digits)) if digit == "1")

    def __contains__(self, number: int) -> bool:
        return number >= self.first and bool(int(self.bits, 16) >> number - self.first & 1)

    def __len__(self) -> int:
        return int(self.bits, 16).bit_count()

    def with_bit(self, number: int) -> "Bitmap":
        """The set with one more number."""
        if number < self.first:
            return Bitmap.of((number, *self.numbers))
        return Bitmap(first=self.first, bits=f"{int(self.bits, 16) | 1 << number - self.first:x}")
