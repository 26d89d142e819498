"""SciCat's `filter`, `fields` and `limits`: LoopBack's and MongoDB's conditions over JSON documents."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

from .errors import refusal
from .validation import Document

_MISSING = object()


def parse(text: str | None) -> Document:
    """Read a query parameter that holds a JSON object; nothing is `{}`.

    Raises:
        ScicatError: it is no JSON object (400).
    """
    try:
        parsed: Any = json.loads(text) if text else {}
    except ValueError as error:
        raise refusal(400, f"Invalid filter: {error}") from None
    if not isinstance(parsed, dict):
        raise refusal(400, "Invalid filter: not an object")
    return cast("Document", parsed)


V3_LIMITS: Document = {"limit": 100}
V4_LIMITS: Document = {"limit": 10, "sort": {"createdAt": "desc"}}
"""What a list is limited to when the filter does not say (4.27, code); v4 shows the newest first."""


def select(documents: Iterable[Document], query: Document, defaults: Document | None = None) -> list[Document]:
    """Apply `{"where", "limits", "fields"}`; limits are `{"limit", "skip", "order": "field:asc|desc"}`."""
    where: Document = query.get("where") or {}
    limits: Document = (defaults or {}) | (query.get("limits") or {})
    found = page([document for document in documents if matches(document, where)], limits)
    return [project(document, query.get("fields")) for document in found]


def page(documents: list[Document], limits: Document) -> list[Document]:
    """Order, then skip, then limit."""
    if order := limits.get("order") or limits.get("sort"):
        for name, direction in _sort_order(order):
            reverse = direction.lower() in ("desc", "-1")
            documents = sorted(documents, key=partial(_sort_key, name), reverse=reverse)
    skip = int(limits.get("skip") or 0)
    limit = int(limits.get("limit") or 0)
    return documents[skip : skip + limit if limit else None]


def project(document: Document, fields: Any) -> Document:
    """Keep the named fields: a list, or `{"name": true}`; nothing named keeps all."""
    names: list[str] = []
    if isinstance(fields, list):
        names = [str(name) for name in cast("list[Any]", fields)]
    elif isinstance(fields, dict):
        names = [name for name, wanted in cast("Document", fields).items() if wanted]
    return {name: document[name] for name in names if name in document} if names else document


def matches(document: Document, where: Document) -> bool:
    """Does the document meet every condition? Names may be dotted paths."""
    for name, condition in where.items():
        if name in ("and", "$and"):
            met = all(matches(document, part) for part in condition)
        elif name in ("or", "$or"):
            met = any(matches(document, part) for part in condition)
        else:
            met = _meets(value_at(document, name), condition)
        if not met:
            return False
    return True


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path; through a list, the list of its items' values."""
    value: Any = document
    for part in path.split("."):
        if isinstance(value, list):
            items = cast("list[Any]", value)
            value = [cast("Document", item)[part] for item in items if isinstance(item, dict) and part in item]
        elif isinstance(value, dict) and part in value:
            value = cast("Document", value)[part]
        else:
            return _MISSING
    return value


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(value, list) and not isinstance(wanted, list):
        return wanted in value  # as MongoDB: a list has the value if one of its items is it
    return (None if value is _MISSING else value) == wanted


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def meets(value: Any, limit: Any) -> bool:
        try:
            return compare(value, limit)
        except TypeError:
            return False

    return meets


def _like(value: Any, pattern: Any) -> bool:
    return isinstance(value, str) and re.search(str(pattern), value, re.IGNORECASE) is not None


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _equals,
    "ne": lambda value, wanted: not _equals(value, wanted),
    "neq": lambda value, wanted: not _equals(value, wanted),
    "in": lambda value, wanted: any(_equals(value, item) for item in wanted),
    "inq": lambda value, wanted: any(_equals(value, item) for item in wanted),
    "nin": lambda value, wanted: not any(_equals(value, item) for item in wanted),
    "gt": _ordered(lambda value, limit: value > limit),
    "gte": _ordered(lambda value, limit: value >= limit),
    "lt": _ordered(lambda value, limit: value < limit),
    "lte": _ordered(lambda value, limit: value <= limit),
    "exists": lambda value, wanted: (value is not _MISSING) is bool(wanted),
    "regex": lambda value, pattern: isinstance(value, str) and re.search(str(pattern), value) is not None,
    "like": _like,
    "ilike": _like,
}


def _meets(value: Any, condition: Any) -> bool:
    if isinstance(condition, dict):
        operators = {name.removeprefix("$"): wanted for name, wanted in cast("Document", condition).items()}
        operators.pop("options", None)
        if operators and operators.keys() <= _OPERATORS.keys():
            return all(_OPERATORS[name](value, wanted) for name, wanted in operators.items())
    return _equals(value, condition)


def _sort_order(order: Any) -> list[tuple[str, str]]:
    if isinstance(order, dict):
        return [(name, str(direction)) for name, direction in cast("Document", order).items()]
    name, _, direction = str(order).partition(":")
    return [(name, direction)]


def _sort_key(name: str, document: Document) -> tuple[bool, str | float]:
    value = value_at(document, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return (True, "" if value is _MISSING or value is None else str(value))
    return (False, value)


def renamed(query: Any, names: Mapping[str, str]) -> Any:
    """The query with other names for fields, as keys and in `order`, however deep they stand."""
    if isinstance(query, list):
        return [renamed(part, names) for part in cast("list[Any]", query)]
    if not isinstance(query, dict):
        return query
    new: Document = {}
    for key, value in cast("Document", query).items():
        if key == "order" and isinstance(value, str):
            field, _, direction = value.partition(":")
            value = f"{names.get(field, field)}:{direction}"
        new[names.get(key, key)] = renamed(value, names)
    return new


def full_facet(documents: Iterable[Document], fields: Document, facets: str | None) -> list[Document]:
    """`fullfacet`: how many documents `fullquery` finds, in all and by each value of each facet."""
    found = full_query(documents, fields, {})
    try:
        names: Any = json.loads(facets) if facets else []
    except ValueError as error:
        raise refusal(400, f"Invalid facets: {error}") from None
    answer: Document = {"all": [{"totalSets": len(found)}] if found else []}
    for name in cast("list[Any]", names if isinstance(names, list) else []):
        counts: Counter[str] = Counter()
        for document in found:
            value = value_at(document, str(name))
            values = cast("list[Any]", value) if isinstance(value, list) else [None if value is _MISSING else value]
            counts.update(json.dumps(one) for one in values)
        answer[str(name)] = [{"_id": json.loads(value), "count": count} for value, count in counts.most_common()]
    return [answer]


def full_query(documents: Iterable[Document], fields: Document, limits: Document) -> list[Document]:
    """`fullquery`: `fields` are conditions, a list means "one of", `text` is searched in the whole document."""
    wanted = dict(fields)
    text = str(wanted.pop("text", "") or "").lower()
    where: Document = {name: {"in": value} if isinstance(value, list) else value for name, value in wanted.items()}
    found = [d for d in documents if matches(d, where) and (not text or text in json.dumps(d).lower())]
    return page(found, limits)
