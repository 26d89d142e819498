"""Preconditions: which version of a file a request is meant for (RFC 9110, 13). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime

from mock_lts.model import StoredFile
from mock_lts.problems import Problem

_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditional headers of one request, as they came; None where there is none."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None
    if_range: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Conditions:
        """Those of a request."""
        return cls(**{field.name: headers.get(field.name.replace("_", "-")) for field in fields(cls)})

    def demand(self, file: StoredFile | None) -> None:
        """The path is in the state that the client supposes.

        Raises:
            Problem: 412, it is not.
        """
        if self.if_match is not None:
            met = file is not None and (self.if_match.strip() == "*" or etag(file) in _TAG.findall(self.if_match))
        else:
            since = _seconds(self.if_unmodified_since)
            met = since is None or file is None or int(file.created_at) <= since
        if not met:
            raise Problem(412, "the file is another one now")

    def demand_absent(self, file: StoredFile | None) -> None:
        """A write or a deletion is not forbidden by `If-None-Match`.

        Raises:
            Problem: 412, it is.
        """
        if self._known_already(file):
            raise Problem(412, "there is such a file already")

    def fresh(self, file: StoredFile) -> bool:
        """The client has this very version: 304 is all it needs."""
        if self.if_none_match is not None:
            return self._known_already(file)
        since = _seconds(self.if_modified_since)
        return since is not None and int(file.created_at) <= since

    def range_applies(self, file: StoredFile) -> bool:
        """`If-Range`, where there is one, means this version; a weak tag never does."""
        wanted = self.if_range
        if wanted is None or wanted.strip() == etag(file):
            return True
        return '"' not in wanted and _seconds(wanted) == int(file.created_at)

    def _known_already(self, file: StoredFile | None) -> bool:
        if self.if_none_match is None or file is None:
            return False
        tags = [tag.removeprefix("W/") for tag in _TAG.findall(self.if_none_match)]  # compared weakly (13.1.2)
        return self.if_none_match.strip() == "*" or etag(file) in tags


def etag(file: StoredFile) -> str:
    """The strong entity tag: a published file's bytes never change, so its id will do."""
    return f'"{file.id}"'


def _seconds(date: str | None) -> int | None:
    """An HTTP date as epoch seconds; None when there is none, or it is none."""
    try:
        return None if date is None else int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
