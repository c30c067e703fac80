"""The view Live: which cameras there are. Pictures come over the WebSocket."""

from __future__ import annotations

from edge_agent.page.api import Call, Endpoint


async def cameras(call: Call) -> object:
    """Return the cameras with their states."""
    await call.page.history.fresh()
    sources = (call.page.history.status or {}).get("sources") or ()
    states = {one["camera"]: one for one in sources}
    listed = []
    for one in call.page.events.info.get("cameras", ()):
        state = states.get(one["camera"], {})
        listed.append(
            {
                "camera": one["camera"],
                "kind": one["kind"],
                "name": one.get("name"),
                "state": state.get("state", "unknown"),
                "reason": state.get("reason", ""),
            }
        )
    return {"cameras": listed, "online": call.page.events.online}


ENDPOINTS = (Endpoint("GET", "/api/live", "viewer", cameras),)
