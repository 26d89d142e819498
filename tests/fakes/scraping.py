"""What Prometheus would see of a process."""

import re
from dataclasses import dataclass

import httpx

_LINE = re.compile(r"^([a-zA-Z_]\w*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Scrape:
    """One page, or several as one."""

    text: str

    @property
    def names(self) -> set[str]:
        """Of all series."""
        return {name for name, _, _ in _LINE.findall(self.text)}

    def all(self, name: str, **labels: str) -> list[float]:
        """The values of the series with this name that have these labels, whatever others they have."""
        return [
            float(value)
            for found, told, value in _LINE.findall(self.text)
            if found == name and labels.items() <= dict(_LABEL.findall(told)).items()
        ]

    def sum(self, name: str, **labels: str) -> float:
        """All of them together; 0 if there are none."""
        return sum(self.all(name, **labels))


async def scrape(*addresses: str) -> Scrape:
    """Ask processes for their pages."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answers = [await client.get(f"http://{address}/metrics") for address in addresses]
    assert all(answer.status_code == 200 for answer in answers)
    return Scrape("\n".join(answer.text for answer in answers))
