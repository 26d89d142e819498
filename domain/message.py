"""The base of everything that travels between workflows, activities and API."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Immutable; may only grow: new fields get a default, and readers ignore what they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")
