"""Parse, and where asked run, GStreamer pipelines; runs under the system's Python, which has gi.

Reads a JSON list of `{"pipeline": str, "frames": int}` from standard input and prints a JSON list of
`{"error": str | null, "elements": [factory names], "location": str | null, "shapes": [[h, w, bytes]]}`.
The pipelines come as production makes them, except that NVIDIA's elements have been replaced before.
"""

from __future__ import annotations

import json
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst, GstApp  # noqa: E402 - GstApp gives appsink its methods


def check(text: str, frames: int) -> dict:
    result: dict = {"error": None, "elements": [], "location": None, "shapes": []}
    try:
        pipeline = Gst.parse_launch(text)
    except gi.repository.GLib.Error as problem:
        return {**result, "error": problem.message}
    for element in pipeline.children:
        name = element.get_factory().get_name()
        result["elements"].insert(0, name)
        if name == "rtspsrc":
            result["location"] = element.get_property("location")
        if name == "appsink" and frames:
            result["shapes"], result["error"] = pull(pipeline, element, frames)
    return result


def pull(pipeline: Gst.Pipeline, sink: GstApp.AppSink, frames: int) -> tuple[list, str | None]:
    shapes = []
    pipeline.set_state(Gst.State.PLAYING)
    for _ in range(frames):
        sample = sink.try_pull_sample(10 * Gst.SECOND)
        if sample is None:
            break
        caps = sample.get_caps().get_structure(0)
        size = sample.get_buffer().get_size()
        shapes.append([caps.get_value("height"), caps.get_value("width"), caps.get_value("format"), size])
    message = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
    pipeline.set_state(Gst.State.NULL)
    return shapes, message.parse_error()[0].message if message else None


if __name__ == "__main__":
    Gst.init(None)
    json.dump([check(case["pipeline"], case["frames"]) for case in json.load(sys.stdin)], sys.stdout)
