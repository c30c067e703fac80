"""Specs as TAO writes and reads them: defaults by release, old names, marks, values of the command line."""

from __future__ import annotations

# ruff: noqa: E402  # whether PyYAML is there decides whether the rest can be imported
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")

from edge_agent.core.errors import ConfigError
from edge_agent.offline.train.spec import SECTIONS_OF, Spec, known_fields, parse_spec
from edge_agent.offline.train.spec_file import load_spec
from edge_agent.offline.train.tao_fields import FIXED, OTHER_SECTIONS
from tests.conftest import REPO
from tests.offline import tao_specs

WORKS = {"results_dir": "/r", "train": {"num_epochs": 3}}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Spec]:
    return lambda content, *values, **options: load_spec(
        write(tmp_path / "spec.yaml", content), values, **options
    )


def merged(content: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of a spec with one field more, named by its dotted key."""
    first, _, rest = key.partition(".")
    inner = content.get(first)
    if rest:
        return {**content, first: merged(inner if isinstance(inner, dict) else {}, rest, value)}
    return {**content, first: value}


@pytest.mark.parametrize(
    "line",
    [
        "model: {no_margin: false}",
        "model: {id_loss_weight: 1.0, triplet_loss_weight: 1.0, cos_layer: false, dropout_rate: 0}",
        "model: {drop_out: 0.0, att_drop_rate: 0.0, stem_conv: false, sie_camera: false, sie_coe: 3}",
        "train: {num_epochs: 3, optim: {cosine_margin: 0.5, cosine_scale: 30, trp_l2: false}}",
        "train: {num_epochs: 3, cudnn: {benchmark: false, deterministic: true}}",
        "train: {num_epochs: 3, checkpoint_interval_unit: epoch}",
        "train: {num_epochs: 3, optim: {steps: [40, 70]}}",
        "wandb: {enable: false}",
        "model_name: reid",
        "evaluate: {batch_size: 4, trt_engine: x}",
        'gen_trt_engine: {onnx_file: "???", tensorrt: {data_type: int8}}',
    ],
)
def test_lines_that_a_spec_of_tao_may_have(line: str):
    assert parse_spec({**WORKS, **yaml.safe_load(line)}) == parse_spec(WORKS)


@pytest.mark.parametrize("release", [tao_specs.release_5_5, tao_specs.release_7])
def test_all_defaults_of_a_release_are_read(release: Callable[[], dict[str, Any]], load: Callable[..., Spec]):
    notes: list[str] = []
    spec = load(release(), note=notes.append)
    assert (spec.train.num_epochs, spec.train.optim.lr_steps) == (10, (40, 70))
    assert spec.train.results_dir is None
    assert spec.model.pretrained_model_path is None
    assert len(notes) == 1
    assert notes[0].startswith("not used by train: ")
    assert {"inference", "evaluate", "export", "wandb"} <= set(notes[0].partition(": ")[2].split(", "))
    fields = {key for key in FIXED if not key.startswith(("evaluate", "export"))}
    written = set(dotted(tao_specs.release_7()))
    assert fields <= written


def dotted(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in content.items():
        found += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


@pytest.mark.parametrize("key", [key for key in FIXED if key.split(".")[0] in SECTIONS_OF["train"]])
def test_a_field_that_is_not_implemented_accepts_its_default_alone(key: str):
    default = FIXED[key].default
    assert parse_spec(merged(WORKS, key, default)) == parse_spec(WORKS)
    if default is not None:
        assert (
            parse_spec(merged(WORKS, key, str(default) if not isinstance(default, list) else default))
            is not None
        )
    other: object = {bool: lambda: not default, int: lambda: 17, float: lambda: 0.77}.get(
        type(default), lambda: "another"
    )()
    with pytest.raises(ConfigError) as caught:
        parse_spec(merged(WORKS, key, other), name="my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {key}: ")
    assert "only TAO's default" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.drop_path", True),
        ("model.shift_num", [5]),
        ("model.no_margin", None),
        ("model.stride_size", [16]),
        ("model.id_loss_weight", {"a": 1}),
        ("train.num_gpus", "two"),
        ("train.checkpointer.enable_topk", "perhaps"),
        ("model.sie_coe", float("nan")),
    ],
)
def test_a_value_of_another_type_is_no_default(key: str, value: object):
    with pytest.raises(ConfigError, match=rf"{key}: .* is not supported here"):
        parse_spec(merged(WORKS, key, value))


@pytest.mark.parametrize("name", OTHER_SECTIONS)
@pytest.mark.parametrize("content", [{"anything": {"at": ["all", "???", "${x}"]}}, None, 5, "???"])
def test_sections_of_other_commands_are_passed_over_with_a_note(name: str, content: object):
    notes: list[str] = []
    assert parse_spec({**WORKS, name: content}, note=notes.append) == parse_spec(WORKS)
    assert notes == [f"not used by train: {name}"]


def test_there_is_one_note_for_all_sections():
    notes: list[str] = []
    parse_spec({**WORKS, "evaluate": {"batch_size": 4}, "wandb": {"enable": False}}, note=notes.append)
    assert notes == ["not used by train: evaluate, wandb"]


def test_the_old_name_of_the_steps():
    spec = parse_spec({"train": {"optim": {"steps": [4, 7]}}})
    assert spec.train.optim.lr_steps == (4, 7)
    with pytest.raises(ConfigError, match=r"train\.optim\.steps is the old name of train\.optim\.lr_steps"):
        parse_spec({"train": {"optim": {"steps": [4, 7], "lr_steps": [4, 7]}}})
    with pytest.raises(ConfigError, match=r"train\.optim\.lr_steps"):
        parse_spec({"train": {"optim": {"steps": "often"}}})


@pytest.mark.parametrize("name", ["model_config", "train_config", "dataset_config", "re_ranking_config"])
def test_sections_of_tao_4_are_refused_with_their_present_name(name: str):
    with pytest.raises(ConfigError, match=f"called {name.removesuffix('_config')} since TAO 5"):
        parse_spec({name: {"backbone": "resnet50"}})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model.no_margn", "model.no_margin"),
        ("wandbb", "wandb"),
        ("train.cudnn.benchmarks", "train.cudnn.benchmark"),
        ("train.optim.cosine_scales", "train.optim.cosine_scale"),
        ("train.chekpointer", "train.checkpointer"),
        ("evaluat", "evaluate"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(key: str, hint: str):
    with pytest.raises(ConfigError, match=rf"unknown field {key}, did you mean {hint}\?"):
        parse_spec(merged(WORKS, key, 1))


@pytest.mark.parametrize(
    "key", ["results_dir", "model", "train.optim", "train.num_epochs", "model.no_margin", "encryption_key"]
)
def test_a_value_that_must_be_given_is_named_once(key: str):
    with pytest.raises(ConfigError) as caught:
        parse_spec(merged(WORKS, key, "???"))
    assert str(caught.value) == f"spec: {key} must be given, ??? is TAO's mark for that: {key}=VALUE"


@pytest.mark.parametrize("value", ["${oc.env:HOME}/r", "${results_dir}/train", "a${b}", "${", ["x", "${y}"]])
def test_a_value_that_is_looked_up_is_refused(value: object):
    with pytest.raises(ConfigError, match=r"train\.results_dir: .*\$\{.* is not looked up here") as caught:
        parse_spec(merged(WORKS, "train.results_dir", value))
    assert str(caught.value).count("train.results_dir:") == 1 + isinstance(value, list)


def test_a_key_is_not_shown():
    for value in ("${oc.env:SECRET}", ["SECRET"], {"SECRET": 1}):
        with pytest.raises(ConfigError) as caught:
            parse_spec({"encryption_key": value})
        assert "SECRET" not in str(caught.value)
    assert parse_spec({"encryption_key": 123}).encryption_key == "123"


def test_nvidias_spec_with_the_values_that_it_asks_for(load: Callable[..., Spec], tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(tao_specs.release_5_0())
    asked = [
        "results_dir", "model.pretrained_model_path", "dataset.train_dataset_dir", "dataset.test_dataset_dir",
        "dataset.query_dataset_dir", "train.results_dir",
    ]  # fmt: skip
    assert all(key in str(caught.value) for key in asked)
    assert "evaluate" not in str(caught.value)
    spec = load(tao_specs.release_5_0(), *(f"{key}=/data/{number}" for number, key in enumerate(asked)))
    assert spec.results_dir == Path("/data/0")
    assert spec.train.results_dir == Path("/data/5")


def test_nvidias_spec_for_swin_is_refused_by_key_and_value(load: Callable[..., Spec]):
    with pytest.raises(ConfigError) as caught:
        load(tao_specs.swin())
    said = str(caught.value)
    assert "model.no_margin: true is not supported here, only TAO's default false" in said
    assert "Swin transformers are not trained here" in said
    assert "model.pretrain_choice: Input should be" in said
    assert said.count(";") >= 3


class TestValuesOfTheCommandLine:
    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ("train.num_epochs=60", lambda spec: spec.train.num_epochs == 60),
            ("train.optim.steps=[1,2]", lambda spec: spec.train.optim.lr_steps == (1, 2)),
            ("train.optim.lr_steps=[]", lambda spec: spec.train.optim.lr_steps == ()),
            ("train.optim={base_lr: 1e-3, steps: [5]}", lambda spec: spec.train.optim.base_lr == 1e-3),
            ("model.label_smooth=false", lambda spec: spec.model.label_smooth is False),
            ("results_dir=null", lambda spec: spec.results_dir is None),
            ("results_dir=", lambda spec: spec.results_dir is None),
            ("results_dir=/a=b", lambda spec: spec.results_dir == Path("/a=b")),
            ("results_dir='/with space'", lambda spec: spec.results_dir == Path("/with space")),
            ("evaluate.gpu_ids=[3]", lambda spec: spec.train.num_epochs == 3),
            ("wandb.enable=false", lambda spec: spec.train.num_epochs == 3),
            ("edge_agent.input_pool=2", lambda spec: spec.edge_agent.input_pool == 2),
        ],
    )
    def test_they_replace_those_of_the_spec(
        self, given: str, found: Callable[[Spec], bool], load: Callable[..., Spec]
    ):
        spec = load(WORKS, given)
        assert found(spec)

    def test_the_last_one_counts_and_the_rest_stays(self, load: Callable[..., Spec]):
        spec = load({**WORKS, "train": None}, "train.num_epochs=5", "train.seed=2", "train.num_epochs=6")
        assert (spec.train.num_epochs, spec.train.seed, spec.results_dir) == (6, 2, Path("/r"))

    def test_an_empty_spec_may_be_filled(self, load: Callable[..., Spec]):
        assert load("", "model.feat_dim=512").model.feat_dim == 512

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("train.num_epoch=5", "unknown field train.num_epoch, did you mean train.num_epochs?"),
            ("train.num_epochs=many", "train.num_epochs: Input should be a valid integer"),
            ("train.num_epochs=[1", "train.num_epochs is not a YAML value"),
            (f"train.seed={1 << 63}", "train.seed: Input should be less than"),
            (f"train.num_epochs={10**30}", "train.num_epochs: Input should be less than"),
            (f"edge_agent.threads={1 << 31}", "edge_agent.threads: Input should be less than"),
            (f"dataset.num_instances={1 << 30}", "dataset.num_instances: Input should be less than"),
            ("train.optim.base_lr=1.0e+308", "train.optim.base_lr: Input should be less than"),
            ("train.num_epochs=*a", "train.num_epochs is not a YAML value"),
            ("model.no_margin=true", "model.no_margin: true is not supported here"),
            ("results_dir=???", "results_dir must be given"),
            ("results_dir=${oc.env:HOME}", "is not looked up here"),
            ("train.num_epochs", "is not KEY=VALUE"),
            ("=5", "is not KEY=VALUE"),
            ("train..seed=5", "is not KEY=VALUE"),
            ("+train.seed=5", "neither added nor removed"),
            ("~train.seed=", "neither added nor removed"),
            ("model.backbone.depth=50", "model.backbone: "),
            ("train={num_epochs: 1, num_epochs: 2}", "num_epochs is given twice"),
            ("x=" + "[" * 1000, "nested too deeply"),
            ("x=&a [*a]", "nested too deeply"),
            ("x." * 20_000 + "y=1", "is not KEY=VALUE"),
        ],
    )
    def test_what_is_wrong_names_the_key(self, given: str, said: str, load: Callable[..., Spec]):
        with pytest.raises(ConfigError) as caught:
            load(WORKS, given)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


names = st.sampled_from(
    [*FIXED, *dotted(tao_specs.release_7()), "x", "train.x", "", "a.b.c", "edge_agent.gamma"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from(["???", "${x}", "5e-4", "true", b"x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def problem(read: Callable[[], object]) -> str:
    """What the reader refuses, or nothing; any other exception fails the test."""
    try:
        read()
    except ConfigError as error:
        return str(error)
    return ""


@given(st.dictionaries(names, values, max_size=4), st.sampled_from(["train", "evaluate", "export"]))
def test_any_content_is_a_spec_or_one_error(content: dict[str, object], command: Any):
    spec: dict[str, Any] = {}
    for key, value in content.items():
        spec = merged(spec, key, value)
    assert len(problem(lambda: parse_spec(spec, command=command))) < 5000


@given(st.lists(st.text(alphabet="[]{}:,=.&*!?#|>-'\" \n\tab1~+$", max_size=20), min_size=1, max_size=2))
def test_any_argument_is_a_value_or_one_error(arguments: list[str]):
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "spec.yaml", WORKS)
        for argument in (*arguments, *(f"train.seed={one}" for one in arguments)):
            assert len(problem(lambda: load_spec(path, [argument]))) < 1000  # noqa: B023  # called at once


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("model:\n\tbackbone: resnet_50\n", "a tab; YAML is indented by spaces (line 2, column 1)"),
            ("model: {feat_dim: 256}\ntrain: {}\nmodel: {}\n", "model is given twice, in lines 1 and 3"),
            ("train: {optim: {gamma: 1, gamma: 1}}", "gamma is given twice"),
            ("? [a]\n: 1\n", "unhashable"),
            ("1: x\n", "unknown field 1"),
            ("~: x\n", "unknown field None"),
            ("train: 5\n", "train: expected fields, such as train.optim"),
            ("train: [num_epochs]\n", "train: expected fields"),
            ("train: {checkpointer: {mode: null, tune: 1}}\n", "unknown field train.checkpointer.tune"),
            ("train: {checkpointer: 5}\n", "expected fields, such as train.checkpointer.enable_topk"),
            ("train: {num_epochs: true}\n", "train.num_epochs: true and false are no value"),
            ("train: {optim: {lr_steps: [true]}}\n", "train.optim.lr_steps: true and false"),
            ("train: {optim: {base_lr: .inf}}\n", "train.optim.base_lr: Input should be a finite number"),
            ("train: {optim: {gamma: .nan}}\n", "train.optim.gamma: Input should be"),
            ("dataset: {pixel_std: [0.1, .inf, 1]}\n", "dataset.pixel_std.1: "),
            ('results_dir: "a\\0b"\n', "a path has no NUL character"),
            ("results_dir: [a]\n", "results_dir: "),
            ("a: 1\n---\nb: 2\n", "expected a single document"),
            ("train: &t {seed: 1}\nmodel: *t\n", "unknown field model.seed"),
            ("x: " + "9" * 5000, "is not a YAML file"),
            ("dataset: {batch_size: 2012-01-01}\n", "dataset.batch_size: "),
        ],
    )
    def test_one_error_in_one_line(self, text: str, said: str, load: Callable[..., Spec]):
        with pytest.raises(ConfigError) as caught:
            load(text)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    def test_ten_thousand_unknown_keys(self):
        with pytest.raises(ConfigError, match="and 9,990 more faults") as caught:
            parse_spec({f"key_number_{number}": number for number in range(10_000)})
        assert len(str(caught.value)) < 2000

    def test_long_names_and_values_are_shortened(self, load: Callable[..., Spec]):
        for text in (
            f"{'k' * 1000}: 1",
            f"model: {{backbone: {'v' * 50_000}}}",
            f"model: {{{'k' * 1000}: 1}}",
        ):
            with pytest.raises(ConfigError) as caught:
                load(text)
            assert len(str(caught.value)) < 600

    def test_a_part_that_occurs_twice_is_read_twice(self, load: Callable[..., Spec]):
        spec = load(
            "model: &shared {drop_path: 0.1}\nexport: *shared\ntrain: {cudnn: &c {}, checkpointer: *c}\n"
        )
        assert spec.model.feat_dim == 256


def test_the_section_of_each_command_is_checked_for_it(load: Callable[..., Spec]):
    content = {**WORKS, "evaluate": {"checkpont": "x"}, "export": {"onnx_fil": "x"}, "model": {"x": 1}}
    for command, said in (
        ("evaluate", "evaluate.checkpont"),
        ("export", "export.onnx_fil"),
        ("train", "model.x"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(content, command=command)
        assert said in str(caught.value)
        assert str(caught.value).count("unknown") == 1


def test_a_checkpoint_of_before_is_read():
    """Specs in checkpoints held the sections of other commands, and fields that are now in `FIXED`."""
    tao_command = {"checkpoint": None, "gpu_id": 0, "num_gpus": 4, "gpu_ids": [0, 1]}
    old = {
        "model": {
            "neck": "bnneck",
            "drop_path": 0.1,
            "stride_size": [16, 16],
            "jpm": False,
            "input_channels": 3,
        },
        "train": {"num_gpus": 1, "gpu_ids": [1], "num_nodes": 1, "optim": {"lr_monitor": "val_loss"}},
        "inference": tao_command,
        "evaluate": tao_command,
        "export": {"gpu_id": 3},
    }
    assert parse_spec(old).train.gpu_ids == (1,)


def test_every_name_is_suggested_from_its_section():
    assert {"optim", "cudnn", "checkpointer", "num_epochs"} <= set(known_fields(["train"]))
    assert {"benchmark", "deterministic"} == set(known_fields(["train", "cudnn"]))
    assert set(OTHER_SECTIONS) <= set(known_fields())


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of docs/training.md, without formatting."""
    text = (REPO / "docs" / "training.md").read_text().partition(f"\n### {heading}\n")[2]
    rows = text.partition("\n| ")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip().strip("`") for cell in row.strip("| ").split(" | ")] for row in rows[2:]]


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_table_of_fields_is_that_of_the_code():
    defaults = leaves(Spec().model_dump(mode="json"))
    documented = {row[0]: row[1] for row in table("Fields")}
    assert documented == {key: "" if value is None else json.dumps(value) for key, value in defaults.items()}


def test_the_table_of_fixed_fields_is_that_of_the_code():
    rows = [[key, json.dumps(field.default), field.since, field.purpose] for key, field in FIXED.items()]
    assert table("Fields that accept only TAO's default") == [
        [cell.strip("`") for cell in row] for row in rows
    ]


def test_sections_of_other_commands_are_documented():
    text = (REPO / "docs" / "training.md").read_text()
    assert all(f"`{name}`" in text for name in OTHER_SECTIONS)
