"""Which replica answers for a name that a client asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.config import Gateway, Model, Role, Site
from appliance.engines.argv import replicas
from appliance.errors import EngineUnavailableError, NotFoundError
from appliance.gateway.upstream import Pool
from appliance.rules import nearest

DOWN_S = 1.0
"""Seconds for which a replica that refused a connection is not asked again while others are up."""


@dataclass(slots=True)
class Target:
    """One replica as the gateway sees it."""

    name: str
    model: str
    task: str
    pool: Pool
    down_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """What a name stands for: a model, perhaps through a role, and the replicas that serve it."""

    name: str
    model: str
    task: str
    role: Role | None
    targets: list[Target] = field(default_factory=list)


class Router:
    """The routes of a site."""

    def __init__(self, site: Site) -> None:
        self.targets = [
            Target(
                replica.name,
                replica.engine.model,
                _task(site, replica.engine.model),
                _pool(site.gateway, replica.port),
            )
            for replica in replicas(site)
        ]
        served = {target.model for target in self.targets}
        self.routes = {name: self._route(site, name, name, None) for name in site.models if name in served}
        for name, role in site.roles.items():
            self.routes[name] = self._route(site, name, role.model, role)

    def find(self, name: str, endpoint: str) -> Route:
        """The route of ``name``; raises :class:`NotFoundError` where there is none for this endpoint."""
        route = self.routes.get(name)
        if route is None:
            hint = nearest(name[:80], list(self.routes))
            message = f"The model `{name[:80]}` does not exist; {hint}"
            raise NotFoundError(message, code="model_not_found", param="model")
        if (route.task == "embed") != (endpoint == "/v1/embeddings"):
            use = "/v1/embeddings" if route.task == "embed" else "/v1/chat/completions"
            message = f"The model `{name}` is not for {endpoint}; use it with {use}"
            raise NotFoundError(message, code="model_not_found", param="model")
        return route

    def close(self) -> None:
        """Close all connections to engines."""
        for target in self.targets:
            target.pool.close()

    def _route(self, site: Site, name: str, model: str, role: Role | None) -> Route:
        targets = [target for target in self.targets if target.model == model]
        return Route(name, model, _task(site, model), role, targets)


def pick(targets: list[Target], tried: set[str], now: float) -> Target:
    """The least loaded of ``targets`` not yet ``tried``; one that is down only when all are.

    Raises :class:`EngineUnavailableError` when all were tried.
    """
    left = [target for target in targets if target.name not in tried]
    if not left:
        raise EngineUnavailableError("No engine of this model is up; try again shortly", retry_after=2)
    return min(left, key=lambda target: (target.down_until > now, target.pool.in_flight))


def _task(site: Site, model: str) -> str:
    found: Model = site.models[model]
    return found.task


def _pool(gateway: Gateway, port: int) -> Pool:
    return Pool(
        port,
        connect_timeout_s=gateway.connect_timeout_s,
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        stall_timeout_s=gateway.stall_timeout_s,
    )
