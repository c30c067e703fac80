"""The forms of DeepStream's messages: the same objects in each, what is left out, what is refused."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.nv_frame import NvFrame, NvObject, decode_frame, encode_frame, unwrapped
from edge_agent.source.assembly import QUIET_S, FrameAssembly
from edge_agent.source.box_message import LARGEST_NUMBER, BoxMessage
from edge_agent.source.deepstream import MAX_MESSAGE_BYTES, parse_deepstream, track_number
from tests.conftest import SHARED
from tests.source.deepstream_messages import FORMS, TIME, Seen, full, in_form, in_wrapper, minimal, protobuf

D = 8
UNTRACKED = str((1 << 64) - 1)


def vector(seed: int, dimension: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def joined(messages: list[bytes], dimension: int | None = D) -> BoxMessage:
    """The frame that messages make."""
    assembly = FrameAssembly(lambda *_: None)
    frames = [f for one in messages for f in assembly.add(parse_deepstream(one, dimension=dimension), 0.0)]
    (frame,) = frames + assembly.due(QUIET_S)
    return frame


TWO = [Seen("7", vector=vector(1)), Seen("9", (100, 200, 190.25, 480), vector=3 * vector(2))]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form):
    found = joined(in_form(form, TWO))
    assert (found.camera, found.time, found.whole) == ("front", pytest.approx(TIME, abs=1e-3), True)
    assert found.number == (None if form == "full" else 451)
    wanted = np.array([one.box for one in TWO], np.float32)
    assert np.allclose(found.boxes, np.floor(wanted) if form == "full" else wanted)
    assert found.scores.tolist() == pytest.approx([0.91, 0.91])
    assert found.tracks == (7, 9)
    assert found.embedded.all()
    units = np.stack([one.vector / np.linalg.norm(one.vector) for one in TWO])
    assert (found.vectors * units).sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert not found.left_out


@pytest.mark.parametrize("form", [*FORMS])
def test_the_wrapper_of_the_mqtt_adaptor_is_taken_off(form):
    plain = in_form(form, TWO[:1])[0]
    wrapped = in_wrapper(plain, "front")
    assert unwrapped(wrapped) == (plain, "front")
    found = joined([wrapped])
    assert (found.camera, found.tracks) == ("front", (7,))


def test_the_sensor_may_stand_in_the_wrapper_alone():
    assert parse_deepstream(in_wrapper(protobuf(TWO, sensor=""), "front")).camera == "front"
    with pytest.raises(ValueError, match="sensorId"):
        parse_deepstream(protobuf(TWO, sensor=""))


@pytest.mark.parametrize("size", range(118, 132))
def test_a_wrapper_is_no_json_whatever_its_length_byte(size):
    # 0A 7B: a wrapper around 123 bytes begins like a new line and a brace.
    plain = protobuf([], sensor="s" * (size - len(protobuf([], sensor="")) - 2))
    assert len(plain) == size
    assert parse_deepstream(in_wrapper(plain, "x")).number == 451
    assert parse_deepstream(b"\n" + minimal(TWO)).number == 451


def test_real_samples():
    folder = SHARED / "data" / "deepstream"
    if not folder.exists():
        pytest.skip("the samples are not here")
    samples = {path.name: path.read_bytes() for path in folder.iterdir()}
    one = parse_deepstream(samples["minimal-embedding.json"], dimension=256)
    two = parse_deepstream(samples["nv-frame.pb"], dimension=256)
    three = joined([samples["full-embedding-7.json"], samples["full-embedding-9.json"]], 256)
    for found in (one, two, three):
        assert (found.camera, found.time, found.tracks) == ("front", 1767943800.12, (7, 9))
        assert (found.vectors * one.vectors).sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert encode_frame(decode_frame(samples["nv-frame.pb"])) == samples["nv-frame.pb"]


PUBLIC = {
    # Equivalents of what NVIDIA's repositories and documentation show, with other values.
    "vehicle of the minimal schema": (
        {"version": "4.0", "id": "9", "@timestamp": "2019-03-02T10:00:00.001Z", "sensorId": "s",
         "objects": ["31|10|20|90|60|Vehicle|#|van|Make|T|red|AB 1|Ohio|0.7",
                     "4|1|2|3|9|Person|#|f|30|b|n|c|0.6"]},
        (1, 1.0, None),
    ),
    "pose before the confidence": (
        {"version": "4.0", "id": "9", "@timestamp": "2024-03-02T10:00:00.001Z", "sensorId": "s",
         "objects": ["4|1|2|3|9|Person|#|f|30|b|n|c|#|pose25D|nose,1,2,3,0.5|neck,1,2,3,0.25||0.625"]},
        (1, 0.625, None),
    ),
    "3D tracking after the embedding": (
        {"version": "4.0", "id": "9", "@timestamp": "2024-03-02T10:00:00.001Z", "sensorId": "s",
         "objects": ["4|1|2|3|9|Person|#||||||0.5|#|embedding|1,0,0,0,0,0,0,0|#|SV3DT|0.9|1,2|3,4|5,6|"]},
        (1, 0.5, True),
    ),
    "an object of the type dummy, and masks": (
        {"version": "4.0", "id": "9", "@timestamp": "2024-03-02T10:00:00.001Z", "sensorId": "s",
         "objects": [""],
         "masks": ["4|1|1|2|3"], "customMessage": [{"a": 1}]},
        (0, None, None),
    ),
    "a dummy with an embedding of its own": (
        {"version": "4.0", "id": "9", "@timestamp": "2024-03-02T10:00:00.001Z", "sensorId": "s",
         "objects": ["|#|embedding|1,2|"]},
        (0, None, None),
    ),
    "JSON of nv.Frame with 3D tracking": (
        {"version": "4.0", "timestamp": "2023-10-02T22:00:00.000Z", "id": "1", "sensorId": "s",
         "objects": [{"dir": [], "lipActivity": None, "info": {"visibility": "0.9"}, "coordinate": None,
                      "bbox": {"topY": 10.5, "rightX": 50.25, "bottomY": 99.0, "leftX": 5.0}, "speed": 0,
                      "location": None,
                      "embedding": {"info": {}, "vector": [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
                      "gaze": None, "id": "1", "confidence": 0.75, "pose": None, "type": "Person"}]},
        (1, 0.75, True),
    ),
    "Metropolis' boxes with embeddings of their own": (
        {"version": "4.0", "timestamp": "2023-10-02T22:00:00.000Z", "id": "1", "sensorId": "s",
         "objects": [{"id": "1", "type": "Person", "confidence": 0.5, "embedding": {"vector": []},
                      "bbox": {"leftX": 1, "topY": 2, "rightX": 3, "bottomY": 4, "embeddings": [
                          {"vector": [0, 0, 2, 0, 0, 0, 0, 0]}]}}]},
        (1, 0.5, True),
    ),
    "a vehicle of the full schema": (
        {"messageid": "m", "mdsversion": "1.0", "@timestamp": "2018-04-20T04:00:00.000Z",
         "sensor": {"id": "s", "type": "Camera", "location": {"lat": 45.0, "lon": -75.0, "alt": 40.0}},
         "object": {"id": "18446744073709551615", "speed": 0,
                    "vehicle": {"type": "sedan", "confidence": -0.1},
                    "bbox": {"topleftx": 0, "toplefty": 0, "bottomrightx": 100, "bottomrighty": 100}},
         "event": {"id": "e", "type": "parked"}, "videoPath": ""},
        (0, None, None),
    ),
    "a person of the newer interface: the key is the label, the box has decimals": (
        {"messageid": "m", "@timestamp": "2018-04-20T04:00:00.000Z", "sensor": {"id": "s"},
         "object": {"id": "3", "Person": {}, "bbox": {"topleftx": 0.5, "toplefty": 0.25, "bottomrightx": 10.0,
                                                      "bottomrighty": 20.0}}},
        (1, 1.0, None),
    ),
    "3D tracking of the full schema, with the world point in the wrong list": (
        {"messageid": "m", "@timestamp": "2026-04-20T04:00:00.000Z", "sensor": {"id": "s"},
         "object": {"id": "3", "person": {"confidence": 0.5}, "signature": [0.1, 0.2],
                    "bbox": {"topleftx": 0, "toplefty": 0, "bottomrightx": 10, "bottomrighty": 20},
                    "SV3DT": {"visibility": 1.0, "footLocation2D": [1.0, 2.0, 3.0, 4.0], "footLocation3D": [],
                              "convexHull": []}}},
        (1, 0.5, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_what_nvidia_shows_is_read(name):
    message, (people, score, embedded) = PUBLIC[name]
    found = parse_deepstream(json.dumps(message).encode(), dimension=D)
    assert (found.camera, len(found.boxes)) == ("s", people)
    if people and score != 1.0:
        assert found.scores.tolist() == [pytest.approx(score)]
    assert bool(found.embedded.any()) is bool(embedded)
    assert not found.left_out


REFUSED = {
    "an event without an object": (
        b'{"messageid": "1", "sensor": {"id": "s"}, "event": {"id": "e"}}', "no `object`"),
    "no sensor": (json.dumps({"messageid": "1", "@timestamp": "2024-01-01T00:00:00Z",
                              "object": {"id": "1", "person": {}}}).encode(), "sensor"),
    "no time": (b'{"sensor": {"id": "s"}, "object": {"id": "1"}}', "@timestamp"),
    "no box": (json.dumps({"@timestamp": "2024-01-01T00:00:00Z", "sensor": {"id": "s"},
                           "object": {"id": "1", "person": {}}}).encode(), "bbox"),
    "metadata of lidar": (json.dumps({"version": "1", "id": "3", "@timestamp": "2024-01-01T00:00:00Z",
                                      "sensorId": "lidar", "objects": [{"id": "1", "bbox3d": []}]}).encode(),
                          "not track"),
    "a text": (b"hello", "Expecting value"),
    "nothing": (b"", "Expecting value"),
    "nv.Message, one object with place and sensor": (
        encode_frame(NvFrame("s", "1", TIME, [], version="5f2c3a1e-aaaa")), "no version"),
    "a frame that is cut off": (protobuf(TWO)[:-3], "cut off"),
    "a wire type that proto3 has not": (b"\x0a\x034.0\x0b", "wire type"),
    "too large": (b" " * (MAX_MESSAGE_BYTES + 1), "more than"),
    "too many objects": (protobuf([Seen()] * 1001), "1001 objects"),
    "text that is not UTF-8": (b"\x0a\x034.0\x12\x01\xff", "UTF-8"),
    "a frame before 1970": (protobuf(TWO, moment=-1.0), "1970"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_message_is_refused_with_a_reason(name):
    payload, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as caught:
        parse_deepstream(payload, dimension=D)
    assert len(str(caught.value)) < 300


def test_95_people_with_256_and_150_with_2048_values_fit():
    for count, dimension in ((95, 256), (150, 2048)):
        people = [Seen(str(n), (n, 0, n + 9.5, 20), vector=vector(n, dimension)) for n in range(count)]
        for form in ("minimal", "protobuf"):
            found = joined(in_form(form, people), dimension)
            assert found.embedded.sum() == count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "bad",
    [np.zeros(D), np.full(D, np.nan), np.full(D, np.inf), np.ones(D - 1), np.ones(D + 1), np.full(D, 1e-30)],
    ids=["zero", "nan", "infinity", "short", "long", "tiny"],
)
def test_an_embedding_that_cannot_be_used_costs_no_box(form, bad):
    found = joined(in_form(form, [replace(TWO[0], vector=bad), TWO[1]]))
    assert (len(found.boxes), found.embedded.tolist()) == (2, [False, True])
    assert found.left_out == {"embedding": 1}
    assert not found.vectors[0].any()


@pytest.mark.parametrize(
    "vector_text",
    ["a,b", "1;2;3;4;5;6;7;8", "1,2,3,4,5,6,7,", ",,,,,,,", "1,2,3,4,5,6,7,1e999", "1,2,3,4,5,6,7,0x8"],
)
def test_a_text_that_is_no_vector(vector_text):
    text = f"7|1|2|3|9|Person|#||||||0.5|#|embedding|{vector_text}|"
    message = {"id": 1, "sensorId": "s", "@timestamp": TIME, "objects": [text]}
    found = parse_deepstream(json.dumps(message).encode(), dimension=D)
    assert (len(found.boxes), found.left_out) == (1, {"embedding": 1})


@pytest.mark.parametrize(
    "values", [[1] * 7 + ["x"], [1] * 7 + [[1]], [1] * 7 + [None], [1] * 7 + [10**400], {}, "x"]
)
@pytest.mark.parametrize("form", ["full", "frame-json"])
def test_a_list_that_is_no_vector(form, values):
    message = json.loads(in_form(form, TWO[:1])[0])
    if form == "full":
        message["object"]["embedding"]["embedding_vector"] = values
    else:
        message["objects"][0]["embedding"]["vector"] = values
    found = joined([json.dumps(message).encode()])
    assert (len(found.boxes), found.embedded.tolist()) == (1, [False])


def test_embeddings_are_not_read_where_they_are_not_used():
    found = parse_deepstream(minimal([replace(TWO[0], vector=np.full(D, np.nan))]))
    assert (found.vectors, found.left_out) == (None, {})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7), ("1", 1), (UNTRACKED, None), ("-1", None), ("", None), ("0", LARGEST_NUMBER),
        (str(LARGEST_NUMBER), LARGEST_NUMBER), (str(LARGEST_NUMBER + 5), 5),
    ],
)  # fmt: skip
def test_numbers_of_tracks(text, number):
    assert track_number(text) == number


@given(st.text(max_size=30) | st.integers(0, (1 << 64) - 2).map(str))
def test_every_track_has_a_number_that_the_events_can_hold(text):
    number = track_number(text)
    assert number is None or 1 <= number <= LARGEST_NUMBER
    assert number == track_number(text)


@pytest.mark.parametrize("form", FORMS)
def test_one_track_is_one_box(form):
    twice = [TWO[0], replace(TWO[0], box=(1, 2, 30, 90)), TWO[1]]
    faults: list[tuple[str, str, int]] = []
    assembly = FrameAssembly(lambda *fault: faults.append(fault))
    frames = [
        f for one in in_form(form, twice) for f in assembly.add(parse_deepstream(one, dimension=D), 0.0)
    ]
    (found,) = frames + assembly.due(1.0)
    assert found.tracks == (7, 9)
    assert (found.left_out, faults) in (({"twice": 1}, []), ({}, [("front", "twice", 1)]))


def test_untracked_objects_are_not_one():
    same = [replace(one, track=UNTRACKED) for one in TWO]
    assert joined(in_form("full", same)).tracks == (None, None)
    assert joined(in_form("minimal", same)).tracks == (None, None)


# ---- frames from messages of one object ----------------------------------------------------------


def test_frames_are_complete_when_the_next_begins_or_nothing_comes():
    left: list[tuple[str, str, int]] = []
    assembly = FrameAssembly(lambda *fault: left.append(fault))

    def add(track: str, moment: float, now: float, sensor: str = "front") -> list[tuple[int | None, ...]]:
        message = parse_deepstream(full(Seen(track), moment=moment, sensor=sensor), dimension=D)
        return [frame.tracks for frame in assembly.add(message, now)]

    assert add("1", TIME, 0.0) == []
    assert add("2", TIME, 0.01) == []
    assert add("5", TIME, 0.01, "back") == []
    assert add("3", TIME + 0.04, 0.02) == [(1, 2)]
    assert add("4", TIME, 0.03) == []  # late
    assert left == [("front", "late", 1)]
    assert assembly.seconds_to_due(0.03) == pytest.approx(QUIET_S - 0.02)
    assert [frame.tracks for frame in assembly.due(0.015 + QUIET_S)] == [(5,)]
    assert add("6", TIME + 0.04, 0.1) == []
    assert [frame.tracks for frame in assembly.due(0.3)] == [(3, 6)]
    assert add("7", TIME + 0.04, 0.31) == []  # its frame was complete
    assert add("8", TIME + 0.08, 0.32) == []
    assert len(left) == 2
    assert assembly.seconds_to_due(0.32) == pytest.approx(QUIET_S)


def test_stamps_of_one_frame_may_differ_by_milliseconds():
    messages = [full(Seen(str(n)), moment=TIME + n // 2 / 1000) for n in range(4)]
    assert len(joined(messages).boxes) == 4
    assembly = FrameAssembly(lambda *_: None)
    again = [full(Seen(str(n % 2)), moment=TIME + n // 2 / 1000) for n in range(4)]
    frames = [f for one in again for f in assembly.add(parse_deepstream(one), 0.0)]
    assert [len(frame.boxes) for frame in frames + assembly.due(1.0)] == [2, 2]


def test_a_clock_that_is_set_back_begins_anew():
    assembly = FrameAssembly(lambda *_: None)
    moments = [TIME, TIME + 0.04, TIME - 3600, TIME - 3599.96]
    frames = [f for at in moments for f in assembly.add(parse_deepstream(full(Seen(), moment=at)), 0.0)]
    assert [frame.time for frame in frames + assembly.due(1.0)] == pytest.approx(moments, abs=1e-3)


def test_an_object_of_another_class_marks_its_frame():
    found = joined([full(Seen(label="vehicle")), full(Seen("9"))])
    assert (found.tracks, found.people, found.other_labels) == ((9,), 1, ("vehicle",))
    assert len(joined([full(Seen(label="vehicle"))]).boxes) == 0


def test_memory_of_frames_is_bounded():
    assembly = FrameAssembly(lambda *_: None)
    for n in range(300):
        assembly.add(parse_deepstream(full(Seen(str(n)), sensor=f"s{n}")), 0.0)
    assert len(assembly.due(1.0)) == 64
    for n in range(1100):
        assembly.add(parse_deepstream(full(Seen(str(n)))), 1.0)
    assert [len(frame.boxes) for frame in assembly.due(2.0)] == [1000]


# ---- protobuf -------------------------------------------------------------------------------------


_FLOAT = st.floats(width=32, allow_nan=False)
_TEXT = st.text(max_size=8)


@given(
    st.lists(
        st.builds(
            NvObject,
            id=_TEXT,
            box=st.tuples(_FLOAT, _FLOAT, _FLOAT, _FLOAT),
            type=_TEXT,
            confidence=_FLOAT,
            info=st.dictionaries(_TEXT, _TEXT, max_size=2),
            embedding=st.lists(_FLOAT, max_size=5).map(lambda values: np.array(values, np.float32)),
        ),
        max_size=4,
    ),
    _TEXT,
    st.none() | st.floats(0, 4e9),
)
def test_what_is_written_is_read(objects, sensor, moment):
    read = decode_frame(encode_frame(NvFrame(sensor, "3", moment, objects)))
    assert (read.sensor, read.id, read.version) == (sensor, "3", "4.0")
    assert (read.time is None) == (moment is None)
    assert moment is None or read.time == pytest.approx(moment, abs=1e-6)
    for wrote, got in zip(objects, read.objects, strict=True):
        assert (got.id, got.box, got.type, got.confidence, dict(got.info)) == (
            wrote.id, wrote.box, wrote.type, wrote.confidence, dict(wrote.info),
        )  # fmt: skip
        assert np.array_equal(got.embedding, wrote.embedding)


def test_googles_library_reads_it_and_is_read():
    message_factory = pytest.importorskip("google.protobuf.message_factory")
    from google.protobuf import descriptor_pb2, descriptor_pool

    made = descriptor_pb2.FileDescriptorProto(name="nv_test.proto", package="nv", syntax="proto3")
    texts, floats = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    )

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> None:
        new = made.message_type.add(name=name)
        for field, number, kind, of, many in fields:
            new.field.add(name=field, number=number, type=kind, type_name=of or None, label=3 if many else 1)

    message("Stamp", ("seconds", 1, 3, "", False), ("nanos", 2, 5, "", False))
    message("Embedding", ("vector", 1, floats, "", True))
    corners = enumerate(("leftX", "topY", "rightX", "bottomY"), 1)
    message("Bbox", *((name, number, floats, "", False) for number, name in corners),
            ("embeddings", 5, 11, ".nv.Embedding", True), ("confidence", 6, floats, "", False))  # fmt: skip
    message("Object", ("id", 1, texts, "", False), ("bbox", 2, 11, ".nv.Bbox", False),
            ("type", 3, texts, "", False),
            ("confidence", 4, floats, "", False), ("embedding", 6, 11, ".nv.Embedding", False),
            ("speed", 10, floats, "", False))  # fmt: skip
    message("Frame", ("version", 1, texts, "", False), ("id", 2, texts, "", False),
            ("timestamp", 3, 11, ".nv.Stamp", False),
            ("sensorId", 4, texts, "", False), ("objects", 5, 11, ".nv.Object", True))  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(made)
    frame_type = message_factory.GetMessageClass(pool.FindMessageTypeByName("nv.Frame"))
    theirs = frame_type.FromString(protobuf(TWO))
    assert [(one.id, len(one.embedding.vector)) for one in theirs.objects] == [("7", D), ("9", D)]
    assert theirs.timestamp.seconds + theirs.timestamp.nanos / 1e9 == pytest.approx(TIME, abs=1e-6)
    theirs.objects[0].embedding.Clear()
    theirs.objects[0].bbox.embeddings.add(vector=[2.0] + [0.0] * (D - 1))
    theirs.objects[0].bbox.embeddings.add(vector=[9.0] * D)
    theirs.objects[1].speed = 3.5
    found = parse_deepstream(theirs.SerializeToString(), dimension=D)
    assert found.embedded.all()
    assert found.vectors[0].tolist() == [1.0] + [0.0] * (D - 1)


# ---- hostile ones ---------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    payloads = [payload for form in FORMS for payload in in_form(form, TWO)]
    payloads += [in_wrapper(payload, "front") for payload in payloads]
    return payloads + [json.dumps(message).encode() for message, _ in PUBLIC.values()]


def mutated(payload: bytes, source: random.Random) -> bytes:
    """The message with some bytes changed, cut out, doubled or moved."""
    data = bytearray(payload)
    for _ in range(source.choice([1, 1, 2, 8])):
        at, to = sorted(source.randrange(len(data) + 1) for _ in range(2))
        change = source.randrange(5)
        if change == 0 and data:
            data[at % len(data)] = source.choice([0, 0x0A, 0x7F, 0x80, 0xFF, source.randrange(256)])
        elif change == 1:
            del data[at : at + source.randrange(16)]
        elif change == 2:
            data[at:at] = data[at : min(to, at + 64)]
        elif change == 3:
            data[at:at] = source.choice(
                [b"9" * 40, b"nan", b"-1", b"|#|", b"[[", b"null", b"1e999", b"\xff\xff\xff\x7f"]
            )
        else:
            data = data[:at] if source.random() < 0.2 else data
    return bytes(data)


def read(payload: bytes) -> BoxMessage | None:
    found, reason = None, ""
    try:
        found = parse_deepstream(payload, dimension=D)
    except ValueError as problem:
        reason = str(problem)
    if found is None:
        assert 0 < len(reason) < 400
        return None
    assert len(found.tracks) == len(found.boxes) == len(found.vectors) == len(found.embedded)
    assert np.isfinite(found.boxes).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert np.linalg.norm(found.vectors[found.embedded], axis=1) == pytest.approx(1, abs=1e-5)
    return found


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab0.,:-|#\udc80", max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.sampled_from(seeds()), st.binary(max_size=12), st.integers(0, 4000), st.integers(0, 12))
def test_changed_bytes_do_no_more_than_be_refused(payload, put, at, cut):
    at %= len(payload) + 1
    read(payload[:at] + put + payload[at + cut :])


@settings(max_examples=100)
@given(st.sampled_from(["frame-json", "full"]), st.data())
def test_any_json_in_any_place_does_no_more_than_be_refused(form, data):
    message = json.loads(in_form(form, TWO)[0])
    place = message
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(_JSON)
        break
    read(json.dumps(message).encode())


@pytest.mark.slow
def test_ten_thousand_hostile_messages_leave_no_memory_behind():
    source, payloads = random.Random(48), seeds()
    assembly = FrameAssembly(lambda *_: None)
    kept: list[int] = []

    def some(count: int) -> int:
        good = 0
        for n in range(count):
            found = read(mutated(source.choice(payloads), source))
            if found is not None:
                good += 1
                assembly.add(found, n / 100)
                assembly.due(n / 100)
        return good

    good = some(2000)
    tracemalloc.start()
    for _ in range(4):
        good += some(2000)
        kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert good > 1000
    assert kept[-1] - kept[0] < 256 << 10


def test_hostile_sizes_are_cheap():
    many = b"1|2|3|4|5|Person"
    frame = b'{"id": 1, "sensorId": "s", "objects": [%s]}'
    hostile = [
        b'{"id": 1, "sensorId": "s", "objects": ' + b"[" * 200_000,
        b"\x0a\x034.0" + b"\x2a\x00" * 2_000_000,
        b"\x0a\xff\xff\xff\xff\x7f",
        b"\x0a\x034.0\x2a" + b"\x80" * 10 + b"\x01",
        frame % (b'"' + many + b"|#" * 2_000_000 + b'"'),
        frame % (b'"' + many + b"|#|embedding|" + b"," * 4_000_000 + b'"'),
        frame % (b'"' + b"9" * 4_000_000 + b'|1|2|3|4|Person"'),
        frame % b",".join([b'"' + many + b'"'] * 1000),
    ]
    began = time.process_time()
    for payload in hostile:
        read(payload)
    assert time.process_time() - began < 10  # about 0.2 s; without limits a minute
