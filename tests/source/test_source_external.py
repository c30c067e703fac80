from __future__ import annotations

import gc
import json
import re
import threading
import time

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion
from structlog.testing import capture_logs

from edge_agent.core.config import DetectorSettings
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.errors import SourceError
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import Detections, Frame
from edge_agent.source import external
from edge_agent.source.box_message import BoxMessage
from edge_agent.source.boxes import parse_deepstream, parse_own
from edge_agent.source.crops import CropFolderOptions, CropFolderSource
from edge_agent.source.external import ExternalBoxes
from tests.conftest import REPO, find_free_port
from tests.source.deepstream_messages import Seen, full

TIME = 1_700_000_000.25


def frame(number: int = 1, *, at: float = TIME, camera: str = "front", size=(200, 100), **more) -> Frame:
    return Frame(camera, number, at, np.zeros((size[1], size[0], 3), np.uint8), **more)


def own(**keys) -> bytes:
    return json.dumps({"camera": "front", "frame": 1, "boxes": [[1, 2, 3, 4]], **keys}).encode()


def deepstream(*objects: str, **keys) -> bytes:
    message = {"version": "4.0", "id": "0", "@timestamp": "2023-11-14T22:13:20.250Z", "sensorId": "front"}
    return json.dumps({**message, "objects": list(objects), **keys}).encode()


def boxes(port: int = 1883, *, topics=("boxes",), mqtt=(), **options) -> ExternalBoxes:
    """Not connected to anything: messages come in through `add`."""
    settings = DetectorSettings(external_topics=topics, **options)
    broker = MqttSettings(**{"broker": f"mqtt://127.0.0.1:{port}", **dict(mqtt)})
    return ExternalBoxes(settings, BrokerSettings.of(broker))


def messages_in_memory() -> dict[int, BoxMessage]:
    gc.collect()
    return {id(one): one for one in gc.get_objects() if type(one) is BoxMessage}


# ---- formats --------------------------------------------------------------------------------------


def test_own_messages():
    message = parse_own(own(time="2023-11-14T22:13:20.25Z", scores=[0.5], track=[7]))
    assert (message.camera, message.number, message.time) == ("front", 1, TIME)
    found = message.on(frame())
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert found.scores.tolist() == [0.5]


def test_boxes_are_scaled_to_the_frame_and_sorted_by_score():
    two = [[10, 10, 20, 20], [100, 50, 200, 100]]
    found = parse_own(own(size=[400, 200], boxes=two, scores=[0.1, 0.9])).on(frame())
    assert found.boxes.tolist() == [[50, 25, 100, 50], [5, 5, 10, 10]]
    shares = parse_own(own(normalised=True, boxes=[[0.1, 0.2, 0.5, 1.0]])).on(frame())
    assert shares.boxes.tolist() == pytest.approx(np.array([[20, 20, 100, 100]]))
    assert len(parse_own(own(boxes=[])).on(frame())) == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"camera": "front", "boxes": []}',
        own(camera=None),
        own(camera="x" * 300),
        own(frame=0),
        own(frame=True),
        own(frame="1"),
        own(frame=10**30),
        own(time=float("nan")),
        own(time=1e300),
        own(time="noon"),
        own(time=-1.0),
        own(time="0001-01-01T00:00:00Z"),
        own(boxes=None),
        own(boxes=[[1, 2, 3]]),
        own(boxes=[[1, 2, "3", 4]]),
        own(boxes=[[1, 2, 3, 4]] * 1001),
        own(scores=[]),
        own(scores=0.5),
        own(size=[0, 100]),
        own(size=[100]),
        own(size=[1e-300, 100]),
        own(scores=["high"]),
        own(boxes=[[[[[1]]]]]),
        own(padding="x" * 300_000),
    ],
)
def test_own_messages_that_make_no_sense_are_refused(payload):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_own(payload)
    assert len(str(caught.value)) < 200


def test_deepstream_messages():
    message = parse_deepstream(
        deepstream(
            "7|10|20|30.5|60|Person|#|male|34|black|none|formal|0.91",
            "8|1|2|3|4|Person",
            "9|1|2|3|4|person|#|x|-0.1",
            "957|1834|150|1918|215|Vehicle|#|sedan|Bugatti|M|blue|CA 444|California|0.8",
            id=41,
        )
    )
    assert (message.camera, message.number, message.time) == ("front", 42, TIME)
    assert message.boxes.tolist() == [[10, 20, 30.5, 60], [1, 2, 3, 4], [1, 2, 3, 4]]
    # without attributes there is no confidence, and -0.1 is DeepStream's word for none
    assert message.scores.tolist() == pytest.approx([0.91, 1.0, 1.0])


@pytest.mark.parametrize(
    "payload",
    [
        deepstream("7|10|20|30"),
        deepstream("7|10|20|x|60|Person"),
        deepstream("7|10|20|30|60|Person|#|male|formal"),
        deepstream(*["7|1|2|3|4|Person"] * 1001),
        deepstream(id="first"),
        deepstream(id=-1),
        deepstream(id="9" * 40),
        deepstream(sensorId=3),
        deepstream(objects={}),
        deepstream("7|1|2|3|4|Person|#|male|formal"),
        deepstream(**{"@timestamp": "yesterday"}),
        json.dumps({"id": 1, "sensorId": "x", "objects": [7]}).encode(),
    ],
)
def test_deepstream_messages_that_make_no_sense_are_refused(payload):
    with pytest.raises(ValueError, match=r"."):
        parse_deepstream(payload)


GOOD = [10, 20, 30, 60]

BAD_BOXES = {
    "no width": [12, 40, 12, 90],
    "no height": [12, 40, 30, 40],
    "no width in float32": [1_000.00001, 20, 1_000.00002, 60],
    "upside down": [10, 60, 30, 20],
    "mirrored": [30, 20, 10, 60],
    "infinite": [10, 20, float("inf"), 60],
    "not a number": [10, float("nan"), 30, 60],
    "far away": [10, 20, 1e9, 60],
    "beyond a float": [10, 20, 10**400, 60],
}
MALFORMED_BOXES = {
    "three numbers": [10, 20, 30],
    "five numbers": [10, 20, 30, 60, 1],
    "a text": [10, 20, "30", 60],
    "a null": [10, 20, None, 60],
    "a bool": [10, 20, True, 60],
    "a list": [10, 20, [30], 60],
    "nothing": None,
    "a word": "box",
}


@pytest.mark.parametrize("name", BAD_BOXES | MALFORMED_BOXES)
def test_a_bad_box_does_not_lose_the_others(name):
    bad = (BAD_BOXES | MALFORMED_BOXES)[name]
    message = parse_own(own(boxes=[bad, GOOD, bad], scores=[0.5, 0.6, 0.7]))
    assert message.boxes.tolist() == [GOOD]
    assert message.scores.tolist() == pytest.approx([0.6])
    assert sum(message.left_out.values()) == 2
    if name in BAD_BOXES:
        assert len(parse_own(own(boxes=[bad])).boxes) == 0  # alone too


@pytest.mark.parametrize("score", [1.0001, 3.0, -0.1, float("nan"), float("inf"), 10**400, "0.5", True, [1]])
def test_a_confidence_that_is_none_loses_its_box_alone(score):
    message = parse_own(own(boxes=[GOOD, [0, 0, 5, 5]], scores=[score, 0.5]))
    assert (message.boxes.tolist(), sum(message.left_out.values())) == ([[0, 0, 5, 5]], 1)


def test_a_missing_confidence_is_one():
    assert parse_own(own(boxes=[GOOD, GOOD], scores=[None, 0.5])).scores.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("8|12|40|12|90|Person", "empty"),
        ("8|30|20|10|60|Person", "empty"),
        ("8|10|20|nan|60|Person", "range"),
        ("8|10|20|-inf|60|Person", "range"),
        ("8|10|20|1e30|60|Person", "range"),
        ("8|10|20|x|60|Person", "form"),
        ("8|10|20|30", "form"),
        (7, "form"),
        (None, "form"),
        ("8|10|20|30|60|Person|#|male|formal", "form"),
        ("8|10|20|30|60|Person|#|||||||3.0", "score"),
        ("8|10|20|30|60|Person|#||||||nan", "score"),
        ("8|10|20|30|60|Person|#||||||-3", "score"),
    ],
)
def test_a_bad_object_does_not_lose_the_others(bad, fault):
    message = parse_deepstream(deepstream("7|812.5|240|930|610|Person", bad, "car|is|no|matter|of|Vehicle"))
    assert message.boxes.tolist() == [[812.5, 240, 930, 610]]
    assert message.left_out == {fault: 1}


@pytest.mark.parametrize("track", ["18446744073709551616", "-7", "", "seven", "9" * 5000])
def test_upstream_track_ids_do_not_matter(track):
    message = parse_deepstream(deepstream(f"{track}|1|2|3|4|Person", f"{track}|5|6|7|8|Person"))
    assert message.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_one_object_sent_twice_is_one_person():
    twin = "7|1|2|3|4|Person|#||||||0.9"
    message = parse_deepstream(deepstream(twin, "7|5|6|7|8|Person", twin, "8|1|2|3|4|Person"))
    assert message.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]
    assert message.left_out == {"twice": 1}


def test_parts_after_the_confidence_are_no_confidence():
    objects = [
        "7|1|2|3|4|Person|#||||||0.91|#|embedding|0.5,0.25|",
        "8|1|2|3|4|Person|#|embedding|0.5,0.25|",
        "9|1|2|3|4|Person|#|pose2D|nose,1,2,0.5|0.8|#|SV3DT|0.5|1,2|3,4|",
        "10|1|2|3|4|Person|#||||||",
    ]
    message = parse_deepstream(deepstream(*objects))
    assert message.scores.tolist() == pytest.approx([0.91, 1.0, 0.8, 1.0])
    assert not message.left_out


def test_labels_of_people_are_a_setting():
    payload = deepstream("7|1|2|3|4|Pedestrian", "8|1|2|3|4|person", "9|1|2|3|4| RIDER ")
    assert len(parse_deepstream(payload).boxes) == 1
    message = parse_deepstream(payload, ["pedestrian", "Rider"])
    assert (len(message.boxes), message.people, message.other_labels) == (2, 2, ("person",))
    for labels in ([], [""], ["  "], ["a|b"], ["x" * 65]):
        with pytest.raises(ValueError, match="external_labels"):
            DetectorSettings(external_labels=labels)


def test_boxes_are_clipped_to_the_picture_and_those_outside_left_out():
    listener = boxes()
    outside = [[-50, 10, -10, 40], [300, 10, 350, 40], [10, -90, 20, 0]]
    listener.add(parse_own(own(boxes=[[-20, -10, 50, 60], [150, 50, 900, 900], *outside])))
    found = listener.boxes_for(frame(), 0)
    assert found.boxes.tolist() == [[0, 0, 50, 60], [150, 50, 200, 100]]
    assert listener.left_out["outside"] == 3


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab0.:-|#\udc80", max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=4),
    max_leaves=8,
)
_KEYS = ("camera", "frame", "time", "size", "boxes", "scores", "id", "sensorId", "@timestamp", "objects")
_NUMBER = st.floats() | st.integers() | st.sampled_from([0, 12, 10**400, -(10**30), 1e300, 0.5])
_BOX = st.lists(_NUMBER, min_size=4, max_size=4) | st.lists(_NUMBER, max_size=6) | _JSON
_FIELD = _NUMBER.map(lambda number: str(number)[:30]) | st.text("ab0.#-", max_size=4)
_OBJECT = st.lists(_FIELD | st.sampled_from(["Person", "#", "embedding", "Car"]), max_size=12).map("|".join)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(_KEYS), _JSON))
def test_no_message_does_more_than_be_refused(message):
    payload = json.dumps({"camera": "front", "frame": 1, "boxes": [], "sensorId": "f", **message}).encode()
    for parse in (parse_own, parse_deepstream):
        try:
            found = parse(payload)
        except ValueError:
            continue
        assert isinstance(found, BoxMessage)
        assert isinstance(found.on(frame()), Detections)


def usable(found: Detections) -> bool:
    inside = (found.boxes >= 0).all() and (found.boxes <= [200, 100, 200, 100]).all()
    proper = (found.boxes[:, :2] < found.boxes[:, 2:]).all()
    return bool(inside and proper and ((found.scores >= 0) & (found.scores <= 1)).all())


@settings(max_examples=60)
@given(st.lists(_BOX, max_size=5), st.lists(_NUMBER | _JSON, min_size=6, max_size=6), st.integers(0, 5))
def test_a_good_box_is_never_lost_and_a_bad_one_never_found(neighbours, scores, at):
    at = min(at, len(neighbours))
    rows = [*neighbours[:at], GOOD, *neighbours[at:]]
    graded = scores[: len(rows)]
    graded[at] = 0.25
    found = parse_own(own(boxes=rows, scores=graded))
    on = found.on(frame())
    assert usable(on)
    assert GOOD in on.boxes.tolist()
    assert len(found.boxes) + sum(found.left_out.values()) == len(rows)


@settings(max_examples=60)
@given(st.lists(_OBJECT | _JSON, max_size=6), st.integers(0, 6))
def test_a_good_object_is_never_lost_and_a_bad_one_never_found(neighbours, at):
    objects = [*neighbours[:at], "7|10|20|30|60|Person|#||||||0.25", *neighbours[at:]]
    found = parse_deepstream(deepstream(*objects)).on(frame())
    assert usable(found)
    assert GOOD in found.boxes.tolist()


# ---- matching -------------------------------------------------------------------------------------


def test_by_number_and_camera():
    listener = boxes()
    listener.add(parse_own(own(frame=7)))
    listener.add(parse_own(own(frame=8, boxes=[])))
    assert listener.boxes_for(frame(7, camera="back"), 0) is None
    assert len(listener.boxes_for(frame(7), 0)) == 1
    assert len(listener.boxes_for(frame(8), 0)) == 0  # upstream saw nobody: that is an answer
    assert listener.boxes_for(frame(9), 0) is None


def test_by_time_the_nearest_within_the_tolerance():
    listener = boxes(external_tolerance_ms=50)
    for offset, side in ((-0.04, 10), (0.01, 20), (0.03, 30), (0.2, 40)):
        listener.add(parse_own(own(frame=None, time=TIME + offset, boxes=[[0, 0, side, side]])))
    assert listener.boxes_for(frame(), 0).boxes[0, 2] == 20
    assert listener.boxes_for(frame(2, at=TIME + 0.12), 0) is None


def test_a_frame_gets_all_objects_of_the_full_format():
    listener = boxes(external_format="deepstream")
    for track, left in (("7", 10), ("8", 60), ("7", 90)):
        listener.add(parse_deepstream(full(Seen(track, (left, 10, left + 20, 60)), moment=TIME)))
    listener.add(parse_deepstream(full(Seen("7", (12, 10, 32, 60)), moment=TIME + 0.04)))
    assert listener.boxes_for(frame(1), 0).boxes[:, 0].tolist() == [10, 60]
    assert listener.boxes_for(frame(2, at=TIME + 0.04), 5).boxes[:, 0].tolist() == [12]
    assert listener.left_out["twice"] == 1


def test_deepstream_by_time_by_default():
    message = parse_deepstream(deepstream("7|1|2|3|4|Person", id=0))
    for match, other_time, other_number in (("auto", None, 1), ("time", None, 1), ("frame", 1, None)):
        listener = boxes(external_format="deepstream", external_match=match)
        listener.add(message)
        same_number = listener.boxes_for(frame(1, at=TIME + 60), 0)
        listener = boxes(external_format="deepstream", external_match=match)
        listener.add(message)
        same_time = listener.boxes_for(frame(500), 0)
        assert (same_number and len(same_number), same_time and len(same_time)) == (other_time, other_number)


def test_names_and_sizes_of_upstream():
    listener = boxes(
        external_format="deepstream", external_cameras={"HWY-1": "front"}, external_size=(400, 200)
    )
    listener.add(parse_deepstream(deepstream("7|10|20|30|40|Person", sensorId="HWY-1")))
    assert listener.boxes_for(frame(), 0).boxes.tolist() == [[5, 10, 15, 20]]


def test_labels_that_are_never_known_are_reported_once_for_each_camera():
    listener = boxes(external_format="deepstream", external_labels=["person", "rider"])
    with capture_logs() as logs:
        for number in range(3):
            listener.add(parse_deepstream(deepstream("7|1|2|3|4|pedestrian\x1b", id=number)))
        listener.add(parse_deepstream(deepstream("7|1|2|3|4|Person", "8|1|2|3|4|car", sensorId="back")))
        listener.add(parse_deepstream(deepstream("8|1|2|3|4|car", sensorId="back")))
        listener.add(parse_deepstream(deepstream(sensorId="empty")))
    warnings = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "front" in warnings[0]
    assert "person, rider" in warnings[0]
    assert "pedestrian\\x1b" in warnings[0]


def test_a_bad_box_is_counted_and_reported_once_for_each_camera():
    listener = boxes()
    with capture_logs() as logs:
        for number in range(1, 4):
            listener.add(parse_own(own(frame=number, boxes=[GOOD, [1, 1, 1, 1]])))
        listener.add(parse_own(own(frame=5, boxes=[GOOD, [1, 1, 1, 1]], camera="back")))
    assert listener.left_out["empty"] == 4
    warnings = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert [reason.split(":")[0] for reason in warnings] == ["camera front", "camera back"]


@pytest.mark.parametrize("ahead", [-86_400.0, 3600.0, 1e9])
def test_a_message_of_another_time_changes_nothing_and_is_reported(ahead):
    listener = boxes(external_format="deepstream")
    assert listener.boxes_for(frame(1), 0) is None
    with capture_logs() as logs:
        listener.add(parse_deepstream(deepstream("7|1|2|3|4|Person", **{"@timestamp": TIME + ahead})))
    assert "clocks" in logs[0]["reason"]
    threading.Timer(0.1, listener.add, [parse_deepstream(deepstream("7|1|2|3|4|Person"))]).start()
    assert len(listener.boxes_for(frame(2), 5)) == 1


def test_a_message_without_a_time_is_matched_by_number():
    listener = boxes(external_format="deepstream")
    listener.add(parse_deepstream(deepstream("7|1|2|3|4|Person", id=6, **{"@timestamp": None})))
    assert len(listener.boxes_for(frame(7), 0)) == 1


def test_a_frame_waits_for_its_boxes():
    listener = boxes()
    threading.Timer(0.1, listener.add, [parse_own(own(frame=3))]).start()
    assert len(listener.boxes_for(frame(3), 5)) == 1


def test_a_frame_does_not_wait_in_vain(monkeypatch):
    listener = boxes(external_wait_ms=60_000)
    listener.add(parse_own(own(frame=5)))
    began = time.monotonic()
    assert listener.boxes_for(frame(4), 60) is None  # 5 is here, and messages come in order
    monkeypatch.setattr(external, "WINDOW_S", 0.0)
    assert listener.boxes_for(frame(1, camera="silent"), 60) is None
    assert len(listener.detect_frame(frame(1, camera="silent"))) == 0
    assert time.monotonic() - began < 30  # far from the 180 s it would have waited


def test_late_messages_are_not_kept():
    listener = boxes()
    assert listener.boxes_for(frame(10), 0) is None
    listener.add(parse_own(own(frame=10)))
    listener.add(parse_own(own(frame=11)))
    assert listener.boxes_for(frame(10), 0) is None
    assert len(listener.boxes_for(frame(11), 0)) == 1


def test_memory_is_bounded(monkeypatch):
    earlier = messages_in_memory()

    def kept() -> list[str]:
        return [message.camera for key, message in messages_in_memory().items() if key not in earlier]

    monkeypatch.setattr(external, "MAX_CAMERAS", 3)
    monkeypatch.setattr(external, "MESSAGES_PER_CAMERA", 4)
    listener = boxes()
    for number in range(1, 50):
        listener.add(parse_own(own(frame=number, camera=f"cam{number % 10}")))
        listener.add(parse_own(own(frame=number)))
    assert len(set(kept())) == 3
    assert len(kept()) <= 12
    assert len(listener.boxes_for(frame(49), 0)) == 1
    monkeypatch.setattr(external, "WINDOW_S", 0.0)
    time.sleep(0.01)
    assert listener.boxes_for(frame(50), 0) is None
    assert "front" not in kept()


def test_boxes_that_came_with_the_frame_come_first():
    given_boxes = Detections(np.array([[0, 0, 5, 5]], np.float32), np.ones(1, np.float32))
    assert boxes().detect_frame(frame(external=given_boxes)) is given_boxes


# ---- over a real broker ---------------------------------------------------------------------------


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_over_mqtt_through_a_restart_of_the_broker(mosquitto, version):
    protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
    upstream = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
    upstream.reconnect_delay_set(1, 1)
    upstream.connect("127.0.0.1", mosquitto.port)
    upstream.loop_start()
    listener = boxes(mosquitto.port, topics=["up/+/boxes"], mqtt={"version": version})
    try:
        upstream.publish("up/front/boxes", own(frame=1), qos=1, retain=True).wait_for_publish(5)
        with capture_logs() as logs, listener:

            def refused() -> int:
                return sum("refused" in entry.get("reason", "") for entry in logs)

            until(lambda: listener.connected and refused() == 1)  # the retained one
            upstream.publish("up/front/boxes", own(frame=2))
            upstream.publish("up/front/boxes", b"{")
            assert len(listener.boxes_for(frame(2), 5)) == 1
            until(lambda: refused() == 2)
            mosquitto.stop(kill=True)
            until(lambda: not listener.connected)
            mosquitto.start()
            until(lambda: listener.connected and upstream.is_connected())
            upstream.publish("up/front/boxes", own(frame=3))
            assert len(listener.boxes_for(frame(3), 5)) == 1
    finally:
        upstream.disconnect()
        upstream.loop_stop()
    events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert events.count("external_boxes_connected") == 2
    assert events.count("external_boxes_disconnected") == 1


def test_no_broker_stops_nothing():
    listener = boxes(find_free_port(), external_wait_ms=0)
    with capture_logs() as logs, listener:
        until(lambda: any(entry["event"] == "external_boxes_trouble" for entry in logs))
        assert not listener.connected
        assert len(listener.detect_frame(frame())) == 0
        began = time.monotonic()
    assert time.monotonic() - began < 3.0  # the agent's promise for its own end


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(SourceError, match="topic"):
        boxes(topics=[])
    with (
        pytest.raises(SourceError, match="TLS"),
        boxes(mqtt={"broker": "mqtts://127.0.0.1", "ca_file": tmp_path / "no.pem"}),
    ):
        pass


def test_the_examples_in_the_documentation(tmp_path):
    text = (REPO / "docs" / "sources.md").read_text()
    examples = dict(re.findall(r"```json (\w+)\n(.*?)```", text, re.DOTALL))
    assert parse_own(examples["boxes"].encode()).on(frame(size=(1920, 1080))).scores.tolist() == [
        pytest.approx(0.91)
    ]
    assert parse_deepstream(examples["deepstream"].encode()).number == 451
    crops = tmp_path / "crops"
    crops.mkdir()
    (crops / "crop-000017.json").write_text(examples["crop"])
    cv2.imwrite(str(crops / "crop-000017.jpg"), np.zeros((16, 8, 3), np.uint8))
    source = CropFolderSource(
        "yard", crops, tmp_path / "s.sqlite", CropFolderOptions(settle_seconds=0, once=True)
    )
    batch = next(item for item in source.frames() if item is not None)
    assert (batch.camera, batch.number, batch.track_ids) == ("yard-hall", 451, (7,))
