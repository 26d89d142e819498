"""Request bodies checked as class-validator does for SciCat: every violation named, unknown fields refused."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

Document = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class Kind:
    """A sort of value: class-validator's name for the rule, its sentence, and the rule."""

    constraint: str
    sentence: str
    accepts: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    # JavaScript has one number type: 5.0 is an integer there, true is not a number.
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_date(text: str) -> str:
    """A date as it comes out of MongoDB: UTC, milliseconds, Z; a time without an offset is taken as UTC.

    Raises:
        ValueError: it is no ISO 8601 date.
    """
    if re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2]))?", text):
        text = f"{text}-01-01"[:10]
    # Go writes nanoseconds, which Python's parser refuses: cut them to microseconds.
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(as_date(value))
    except (ValueError, OverflowError):
        return False


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value))


def _is_email_list(value: Any) -> bool:
    return isinstance(value, str) and all(re.fullmatch(r"[^@\s]+@[^@\s]+", part.strip()) for part in value.split(";"))


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


STRING = Kind("isString", "{} must be a string", lambda value: isinstance(value, str))
INTEGER = Kind("isInt", "{} must be an integer number", _is_integer)
NUMBER = Kind("isNumber", "{} must be a number conforming to the specified constraints", _is_number)
BOOLEAN = Kind("isBoolean", "{} must be a boolean value", lambda value: isinstance(value, bool))
DATE = Kind("isDateString", "{} must be a valid ISO 8601 date string", _is_date)
EMAIL = Kind("isEmail", "{} must be an email", _is_email_list)
OBJECT = Kind("isObject", "{} must be an object", _is_dict)
STRINGS = Kind("isString", "each value in {} must be a string", _is_list_of_strings)
LIST = Kind("isArray", "{} must be an array", lambda value: isinstance(value, list))
ANY = Kind("isDefined", "{} should not be null or undefined", lambda _value: True)


@dataclass(frozen=True)
class Field:
    """One property of a body; `items` is the shape of each entry of a list that must not be empty."""

    kind: Kind
    required: bool = False
    items: "Shape | None" = None


Shape = Mapping[str, Field]


@dataclass(frozen=True)
class Violation:
    """What is wrong with one property."""

    name: str
    constraint: str
    message: str

    def as_json(self) -> Document:
        """The form in which v3 datasets answer it."""
        return {"property": self.name, "constraints": {self.constraint: self.message}}


def required(**kinds: Kind) -> dict[str, Field]:
    """Fields that must be there."""
    return {name: Field(kind, required=True) for name, kind in kinds.items()}


def optional(**kinds: Kind) -> dict[str, Field]:
    """Fields that may be missing or null."""
    return {name: Field(kind) for name, kind in kinds.items()}


def partial(shape: Shape) -> dict[str, Field]:
    """The same fields, none of them required (Nest's PartialType)."""
    return {name: replace(field, required=False) for name, field in shape.items()}


def violations(body: Document, shape: Shape, *, prefix: str = "") -> list[Violation]:
    """Check a body against its shape; an empty list means that it is right.

    Unknown properties come first, then the fields in the shape's order. Null counts as missing, since SciCat's
    optional fields allow it.
    """
    found = [
        Violation(name, "whitelistValidation", f"{prefix}property {name} should not exist")
        for name in body
        if name not in shape
    ]
    for name, field in shape.items():
        value = body.get(name)
        if value is None and not field.required:
            continue
        label = f"{prefix}{name}"
        if field.items is not None and value in (None, []):
            found.append(Violation(name, "arrayNotEmpty", f"{label} should not be empty"))
        elif value is None or not field.kind.accepts(value):
            found.append(Violation(name, field.kind.constraint, field.kind.sentence.format(label)))
        elif field.items is not None:
            found.extend(_violations_of_items(name, label, cast("list[Any]", value), field.items))
    return found


def _violations_of_items(name: str, label: str, values: list[Any], shape: Shape) -> list[Violation]:
    found: list[Violation] = []
    for index, item in enumerate(values):
        if isinstance(item, dict):
            found.extend(violations(cast("Document", item), shape, prefix=f"{label}.{index}."))
        else:
            message = f"each value in nested property {label} must be either object or array"
            found.append(Violation(name, "nestedValidation", message))
    return found


def with_dates(body: Document, shape: Shape) -> Document:
    """The body with its dates in MongoDB's form."""
    dates = {n: as_date(v) for n, v in body.items() if v is not None and n in shape and shape[n].kind is DATE}
    return body | dates


def messages(found: list[Violation]) -> list[str]:
    """The form in which most end points answer violations."""
    return [violation.message for violation in found]
