"""`edge-agent status`: the state of the agent on this machine, from its status socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption
from edge_agent.cli.output import print_json, say


def command(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the state of the running agent."""
    from edge_agent.core.loading import load
    from edge_agent.health.inquiry import SOCKET_NAME, read_status

    folder = state.expanduser() if state is not None else load(config).state_dir
    found = read_status(folder / SOCKET_NAME)
    if as_json:
        print_json(found)
    else:
        say(*_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The status as text; a value that another version of the agent does not send has no line."""
    reason = f": {found['reason']}" if found.get("reason") else ""
    yield f"{found.get('state', '?')}{reason}"
    yield f"  version {found.get('version')}, process {found.get('pid')}, up {_span(found.get('uptime_s'))}"
    if not found.get("watchdog", {}).get("fed", True):
        yield "  the watchdog is not fed: the service manager will restart the agent"
    if clock := found.get("clock"):
        yield f"clock: {clock['state']}, {clock['text']}"
    yield from _table("stages", (_stage(one) for one in found.get("stages", ())))
    yield from _table("sources", (_source(one) for one in found.get("sources", ())))
    if delivery := found.get("delivery"):
        yield f"delivery: {delivery['connection']}" + _because(delivery["problem"])
    if (governor := found.get("governor")) is not None:
        step = f"step {governor['step']} of {governor['steps']}" if governor.get("steps") else ""
        yield f"governor: {governor['state']} {step}".rstrip() + _because(governor.get("reason"))
    if (shadow := found.get("shadow")) is not None:
        from edge_agent.offline.replay.report import shadow_text

        yield f"second network {shadow_text(shadow)}" + _because(shadow["problem"])
    if (recording := found.get("recording")) is not None:
        lost = f", {recording['lost']} lost" if recording["lost"] else ""
        doing = "stopped" if recording["problem"] else "on"
        yield (
            f"recording: {doing}, {recording['entries']} entries{lost}, {recording['bytes'] / 1e6:.1f} MB"
            + _because(recording["problem"])
        )
    if (fleet := found.get("fleet")) is not None:
        yield f"fleet: {fleet['site']} at {fleet['store']}, {fleet_text(fleet)}" + _because(fleet["problem"])
    yield from _device(found.get("telemetry"))
    if (trouble := found.get("memory", {}).get("trouble")) is not None:
        yield f"memory: {trouble}"
    starts = found.get("starts", {})
    if starts.get("braked"):
        yield f"crash loop: {starts['braked']}"
    for run in starts.get("former", ())[-1:]:
        yield f"previous run: {run['how']}" + _because(run["words"])


def fleet_text(fleet: Mapping[str, Any]) -> str:
    """The state of the link to the store of a fleet, of a status document."""
    parts = [fleet["link"]]
    if fleet["link"] == "waiting" and fleet["retry_s"] is not None:
        parts[0] += f", tried again in {_span(fleet['retry_s'])}"
    parts.append(f"{fleet['pending']} change(s) to send")
    if fleet["lag"]:
        parts.append(f"{fleet['lag']} to apply")
    if fleet["asked"]:
        parts.append(f"{fleet['known']} of {fleet['asked']} strangers known, {fleet['late']} late")
    if fleet["conflicts"]:
        parts.append(f"{fleet['conflicts']} conflict(s)")
    return "; ".join(parts)


def _table(title: str, rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    listed = list(rows)
    if listed:
        yield f"{title}:"
        first, second = (max(len(row[at]) for row in listed) for at in (0, 1))
        for row in listed:
            yield f"  {row[0]:{first}}  {row[1]:{second}}  {row[2]}".rstrip()


def _stage(one: Mapping[str, Any]) -> tuple[str, str, str]:
    silent = f" for {one['silent_s']:.0f} s" if one["state"] == "stuck" else ""
    return one["name"], one["state"], f"{one['doing']}{silent}"


def _source(one: Mapping[str, Any]) -> tuple[str, str, str]:
    dropped = f", {one['dropped']} dropped" if one["dropped"] else ""
    still = f", {one['still']} still" if one.get("still") else ""
    over = f", {one['overload']} crops skipped for overload" if one.get("overload") else ""
    failed = f", {one['failures']} failures" if one.get("failures") else ""
    text = f"{one['delivered']} delivered{dropped}{failed}{still}{over}; {one['reason']}"
    return one["camera"], one["state"], text


def _device(telemetry: Mapping[str, Any] | None) -> Iterator[str]:
    if telemetry is None:
        return
    parts = [
        _value(telemetry.get("hottest_c"), "°C", f" ({telemetry.get('hottest_zone')})"),
        {True: "throttled", False: "not throttled"}.get(telemetry.get("throttled"), ""),  # type: ignore[arg-type]
        _value(telemetry.get("power_total_w"), "W"),
        f"mode {telemetry['power_mode']}" if telemetry.get("power_mode") else "",
    ]
    if known := [part for part in parts if part]:
        yield "device: " + ", ".join(known)
    rates = ", ".join(f"{camera} {rate:g}/s" for camera, rate in telemetry.get("frames_per_s", {}).items())
    yield (
        f"load: frames {rates or 'none'}; {telemetry.get('crops_per_s') or 0:g} crops/s; "
        f"{telemetry.get('people_present') or 0} people present, {telemetry.get('identities') or 0} known; "
        f"{telemetry.get('outbox_rows') or 0} events wait"
    )


def _value(value: float | None, unit: str, more: str = "") -> str:
    return "" if value is None else f"{value:.1f} {unit}{more}"


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _span(seconds: float | None) -> str:
    """12.3 s, 5 min, 7 h, 3 d."""
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
