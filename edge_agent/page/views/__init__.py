"""The endpoints of the page, one module for each view."""

from edge_agent.page.api import Endpoint
from edge_agent.page.views import events, health, live, login, people, thresholds

ENDPOINTS: tuple[Endpoint, ...] = (
    *login.ENDPOINTS,
    *live.ENDPOINTS,
    *events.ENDPOINTS,
    *people.ENDPOINTS,
    *thresholds.ENDPOINTS,
    *health.ENDPOINTS,
)
