"""The contract with subscribers, generated from the event classes: JSON Schemas and an AsyncAPI 3 document.

    python -m edge_agent.deliver.contract docs

writes `docs/asyncapi.yaml`, `docs/openapi.yaml`, `docs/schemas/` and the table of alerts in
`docs/subscribers.md`. A test compares the files with the classes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.core.alerts import alerts_table
from edge_agent.core.codec import command_schema, data_schema, envelope_schema
from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.core.events import DATA_TYPES
from edge_agent.core.manifest import write_atomic
from edge_agent.deliver.openapi import openapi
from edge_agent.deliver.packets import CLOUDEVENTS_JSON
from edge_agent.deliver.topics import PREFIX

VERSION = "1.2.0"
"""Of the contract: the first number is in every topic, the second counts additions."""
ASYNCAPI = "3.0.0"
BINDING = "0.2.0"
ROOT = f"{PREFIX}/{{site}}/{{device}}"

_PARAMETERS = {
    "site": "Where the device stands, 1 to 64 of a-z, 0-9, _ and -.",
    "device": "Name of the device, 1 to 64 of a-z, 0-9, _ and -.",
    "camera": "Id of the camera, 1 to 64 of a-z, 0-9, _ and -.",
    "kind": "What happened; see the messages.",
    "verb": "The command.",
}


class _Channel(NamedTuple):
    """Address below the root, kind of data, description, and how its messages are published."""

    address: str
    kind: str
    text: str
    retained: bool = False
    qos: int = 1
    expiry_s: int | None = 86_400


_CHANNELS: Mapping[str, _Channel] = {
    "status": _Channel(
        "status",
        "status",
        "Whether the agent works. Retained; the broker publishes offline in its place when it dies (will).",
        retained=True,
        expiry_s=None,
    ),
    "info": _Channel(
        "info", "info", "What runs on the device: the birth, before the status.", retained=True, expiry_s=None
    ),
    "telemetry": _Channel("telemetry", "telemetry", "Health and load every few seconds.", qos=0, expiry_s=90),
    "cameraStatus": _Channel(
        "camera/{camera}/status", "camera", "State of one camera.", retained=True, expiry_s=None
    ),
    "identity": _Channel(
        "identity/{kind}",
        "identity",
        "What was decided about a person. Numbered, kept until acknowledged.",
    ),
    "present": _Channel(
        "present",
        "present",
        "Everyone in view, consistent with the numbered events.",
        retained=True,
        expiry_s=None,
    ),
    "person": _Channel(
        "person/{kind}",
        "person",
        "What happened to an identity of the gallery. Numbered, kept until acknowledged.",
    ),
    "gap": _Channel("gap", "gap", "Numbers that will not come, and why."),
    "alert": _Channel("alert/{kind}", "alert", "Something that a person should look at."),
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return every schema by file name: data, complete messages, commands."""
    found = {f"{kind}.json": data_schema(kind) for kind in DATA_TYPES}
    found |= {f"{kind}-message.json": envelope_schema(kind) for kind in DATA_TYPES}
    return found | {f"command-{verb}.json": command_schema(verb) for verb in COMMAND_TYPES}


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document; `send` and `receive` are from the agent's side."""
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "edge-agent",
            "version": VERSION,
            "description": "Identity events of people and device health over MQTT. See docs/subscribers.md"
            " for guarantees: at least once, in order per topic, numbered per device without holes.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CLOUDEVENTS_JSON,
        "servers": _servers(),
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "parameters": _parameters()},
    }


def _servers() -> dict[str, Any]:
    will = {"topic": f"{ROOT}/status", "qos": 1, "retain": True, "message": "state offline, same session id"}
    binding = {
        "clientId": "edge-agent-{site}-{device}",
        "cleanSession": False,
        "keepAlive": 15,
        "sessionExpiryInterval": 3600,
        "lastWill": will,
        "bindingVersion": BINDING,
    }
    shared = {
        "host": "{broker}",
        "variables": {"broker": {"description": "host:port of the site's broker"}},
        "protocolVersion": "5.0",
        "bindings": {"mqtt": binding},
    }
    return {
        "plain": {**shared, "protocol": "mqtt", "description": "MQTT 5, or 3.1.1 by a switch."},
        "tls": {**shared, "protocol": "mqtts", "description": "The same over TLS, mutual where asked for."},
    }


def _parameters() -> dict[str, Any]:
    return {name: {"description": text} for name, text in _PARAMETERS.items()}


def _used_parameters(address: str) -> dict[str, Any]:
    names = [name for name in _PARAMETERS if f"{{{name}}}" in address]
    return {name: {"$ref": f"#/components/parameters/{name}"} for name in names}


def _channel(address: str, message: str, description: str) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "parameters": _used_parameters(address),
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _channels() -> dict[str, Any]:
    found = {name: _channel(f"{ROOT}/{one.address}", one.kind, one.text) for name, one in _CHANNELS.items()}
    for verb, data in COMMAND_TYPES.items():
        name = f"command-{verb}"
        found[name] = _channel(f"{ROOT}/cmd/{verb}", name, (data.__doc__ or "").strip())
    result = _channel(f"{ROOT}/cmd/{{verb}}/result", "command-result", "Answer to a command.")
    return found | {"commandResult": result}


def _operations() -> dict[str, Any]:
    found = {f"send-{name}": _event_operation(name, one) for name, one in _CHANNELS.items()}
    return found | {f"receive-{verb}": _command_operation(verb) for verb in COMMAND_TYPES}


def _event_operation(name: str, channel: _Channel) -> dict[str, Any]:
    binding: dict[str, Any] = {"qos": channel.qos, "retain": channel.retained, "bindingVersion": BINDING}
    if channel.expiry_s is not None:
        binding["messageExpiryInterval"] = channel.expiry_s
    return {
        "action": "send",
        "summary": channel.text,
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{channel.kind}"}],
        "bindings": {"mqtt": binding},
    }


def _command_operation(verb: str) -> dict[str, Any]:
    name = f"command-{verb}"
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        "bindings": {"mqtt": {"qos": 1, "retain": False, "bindingVersion": BINDING}},
        "reply": {
            "address": {
                "location": "$message.header#/responseTopic",
                "description": "MQTT 5 response topic, if given.",
            },
            "channel": {"$ref": "#/channels/commandResult"},
            "messages": [{"$ref": "#/channels/commandResult/messages/command-result"}],
        },
    }


def _messages() -> dict[str, Any]:
    binding = {"payloadFormatIndicator": 1, "contentType": CLOUDEVENTS_JSON, "bindingVersion": BINDING}
    bindings = {"bindings": {"mqtt": binding}}
    found = {kind: _message(kind, CLOUDEVENTS_JSON, envelope_schema(kind)) | bindings for kind in DATA_TYPES}
    for verb in COMMAND_TYPES:
        name = f"command-{verb}"
        found[name] = _message(name, "application/json", command_schema(verb))
    return found


def _message(name: str, content_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    title = schema.pop("title")
    return {"name": name, "title": title, "contentType": content_type, "payload": schema}


def to_yaml(value: Any, indent: int = 0) -> str:  # noqa: ANN401 - any JSON value
    """Return JSON values as YAML 1.2 blocks; strings are JSON strings, which are valid YAML."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{pad}{_key(key)}:{_entry(entry, indent)}" for key, entry in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{pad}-{_entry(entry, indent)}" for entry in value)
    return f"{pad}{json.dumps(value, ensure_ascii=False)}\n"


def _key(name: str) -> str:
    """A key without quotes where every YAML reader parses it as a string."""
    return name if re.fullmatch(r"[A-Za-z]{4,}", name) and name not in {"true", "false"} else json.dumps(name)


def _entry(value: Any, indent: int) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, (dict, list)) and value:
        return "\n" + to_yaml(value, indent + 1)
    return " " + to_yaml(value)


def with_alerts(page: str) -> str:
    """Return the page for subscribers with the table of alerts between its markers."""
    before, begin, rest = page.partition("<!-- alerts, generated -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{begin}{alerts_table()}{end}{after}"


def write(docs: Path) -> list[Path]:
    """Write the document and the schemas below `docs`; return the paths."""
    (docs / "schemas").mkdir(parents=True, exist_ok=True)
    written = {
        docs / "asyncapi.yaml": "# Generated by `python -m edge_agent.deliver.contract docs`.\n"
        + to_yaml(asyncapi())
    }
    written[docs / "openapi.yaml"] = (
        "# Generated by `python -m edge_agent.deliver.contract docs`.\n" + to_yaml(openapi(VERSION))
    )
    for name, schema in schemas().items():
        written[docs / "schemas" / name] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    page = docs / "subscribers.md"
    if page.exists():
        written[page] = with_alerts(page.read_text(encoding="utf-8"))
    for path, text in written.items():
        write_atomic(path, text.encode())
    return list(written)


if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        sys.stdout.write(f"{path}\n")
