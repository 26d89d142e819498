"""What routes are given: settings, the workflow gateway, and clients that open with the application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.gateway import Gateway
from api.uploads import Uploads
from clients.idp import IdentityProvider
from clients.landing_zone import LandingZone
from clients.s3 import ObjectStore
from clients.scicat import Catalogue
from clients.state import State
from settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that lives as long as the application."""

    gateway: Gateway
    objects: ObjectStore
    state: State
    landing_zone: LandingZone
    catalogue: Catalogue
    identity: IdentityProvider
    uploads: Uploads


def _settings(request: Request) -> Settings:
    return request.app.state.settings


def _services(request: Request) -> Services:
    return request.app.state.services


def _gateway(request: Request) -> Gateway:
    return request.app.state.services.gateway


SettingsDep = Annotated[Settings, Depends(_settings)]
ServicesDep = Annotated[Services, Depends(_services)]
GatewayDep = Annotated[Gateway, Depends(_gateway)]
