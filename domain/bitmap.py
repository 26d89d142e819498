"""A set of small positive numbers that travels as a short text."""

from domain.message import Message


class Bitmap(Message):
    """Immutable; 1,500 datablocks take 375 characters."""

    bits: str = "0"
    """Hexadecimal; bit n stands for the number n."""

    def __contains__(self, number: int) -> bool:
        return bool(int(self.bits, 16) >> number & 1)

    def __len__(self) -> int:
        return int(self.bits, 16).bit_count()

    def with_bit(self, number: int) -> "Bitmap":
        """The set with one more number."""
        return Bitmap(bits=f"{int(self.bits, 16) | 1 << number:x}")
