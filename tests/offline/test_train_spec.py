"""The experiment spec: TAO's names and defaults, refusals that name the field."""

from __future__ import annotations

# whether PyYAML is there decides whether the rest can be imported
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")

from edge_agent.core.errors import ConfigError
from edge_agent.offline.train.spec import parse_spec
from edge_agent.offline.train.spec_file import load_spec
from tests.core.test_files import KINDS, make


def test_defaults_are_taos():
    spec = parse_spec({})
    assert (spec.model.backbone, spec.model.last_stride, spec.model.feat_dim) == ("resnet_50", 1, 256)
    assert (spec.model.neck_feat, spec.model.label_smooth) == ("after", True)
    assert spec.dataset.pixel_mean == (0.485, 0.456, 0.406)
    assert spec.dataset.pixel_std == (0.226, 0.226, 0.226)
    assert (spec.dataset.num_classes, spec.dataset.batch_size, spec.dataset.num_instances) == (751, 64, 4)
    assert (spec.dataset.padding, spec.dataset.prob, spec.dataset.re_prob) == (10, 0.5, 0.5)
    optim = spec.train.optim
    assert (optim.name, optim.base_lr, optim.lr_steps, optim.gamma) == ("Adam", 3.5e-4, (40, 70), 0.1)
    assert (optim.weight_decay, optim.warmup_factor, optim.warmup_iters) == (5e-4, 0.01, 10)
    assert (optim.triplet_loss_margin, optim.center_loss_weight, optim.center_lr) == (0.3, 5e-4, 0.5)
    assert (spec.re_ranking.re_ranking, spec.re_ranking.k1, spec.re_ranking.lambda_value) == (False, 20, 0.3)


TAO_SPEC = """
results_dir: /results/market1501
encryption_key: nvidia_tao
model:
  backbone: resnet_50
  last_stride: 1
  pretrain_choice: imagenet
  pretrained_model_path: /model/resnet50_pretrained.pth
  input_channels: 3
  input_width: 128
  input_height: 256
  neck: bnneck
  feat_dim: 256
  neck_feat: after
  metric_loss_type: triplet
  with_center_loss: False
  with_flip_feature: False
  label_smooth: True
dataset:
  train_dataset_dir: /data/bounding_box_train
  test_dataset_dir: /data/bounding_box_test
  query_dataset_dir: /data/query
  num_classes: 751
  batch_size: 64
  val_batch_size: 128
  num_workers: 1
  pixel_mean: [0.485, 0.456, 0.406]
  pixel_std: [0.226, 0.226, 0.226]
  padding: 10
  prob: 0.5
  re_prob: 0.5
  sampler: softmax_triplet
  num_instances: 4
re_ranking:
  re_ranking: True
  k1: 20
  k2: 6
  lambda_value: 0.3
train:
  optim:
    name: Adam
    lr_steps: [40, 70]
    gamma: 0.1
    bias_lr_factor: 1
    weight_decay: 5e-4
    weight_decay_bias: 5e-4
    warmup_factor: 0.01
    warmup_iters: 10
    warmup_method: linear
    base_lr: 0.00035
    momentum: 0.9
    center_loss_weight: 0.0005
    center_lr: 0.5
    triplet_loss_margin: 0.3
  num_epochs: 120
  checkpoint_interval: 10
inference:
  output_file: /results/inference.json
  test_dataset: /data/bounding_box_test
  query_dataset: /data/query
evaluate:
  output_sampled_matches_plot: /results/sampled_matches.png
  output_cmc_curve_plot: /results/cmc_curve.png
export:
  checkpoint: /results/train/model.pth
  onnx_file: /results/model.onnx
"""


def test_a_tao_spec_is_read_whole(tmp_path: Path):
    path = tmp_path / "experiment.yaml"
    path.write_text(TAO_SPEC)
    spec = load_spec(path)
    assert spec.train.optim.weight_decay == 5e-4  # YAML 1.1 reads 5e-4 as text
    assert load_spec(path, command="export").export.onnx_file == Path("/results/model.onnx")
    assert spec.re_ranking.re_ranking is True
    assert "nvidia_tao" not in repr(spec)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"backbon": "resnet_50"}}, "unknown field model.backbon, did you mean model.backbone?"),
        ({"trian": {}}, "unknown field trian, did you mean train?"),
        ({"train": {"optim": {"base_learning": 1}}}, "unknown field train.optim.base_learning"),
        ({"model": {"backbone": "swin_tiny"}}, "model.backbone"),
        ({"model": {"feat_dim": 32}}, "model.feat_dim"),
        ({"model": {"jpm": True}}, "model.jpm"),
        ({"train": {"num_gpus": 2}}, "train.num_gpus"),
        ({"dataset": {"batch_size": 62}}, "not a multiple of"),
        ({"edge_agent": {"input_pool": 3}}, "edge_agent.input_pool"),
        ({"model": {"input_width": 48}, "edge_agent": {"input_pool": 2}}, "multiples of 16"),
        ({"dataset": {"padding": 5}, "edge_agent": {"input_pool": 2}}, "dataset.padding"),
    ],
)
def test_weights_that_do_not_fit_are_named(content: dict[str, object], said: str):
    with pytest.raises(ConfigError) as caught:
        parse_spec(content, name="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert said in str(caught.value)


def test_several_faults_are_reported_together():
    with pytest.raises(ConfigError, match=r"model\.backbon.*dataset\.paddin"):
        parse_spec({"model": {"backbon": "x"}, "dataset": {"paddin": 1}})


def test_an_empty_section_keeps_its_defaults():
    assert parse_spec({"train": None}).train.num_epochs == 120


@pytest.mark.parametrize(("text", "said"), [("- a\n- b\n", "expected sections"), ("a: [1\n", "not a YAML")])
def test_files_that_are_no_specs(tmp_path: Path, text: str, said: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_spec(path)


PAIRS = tuple(zip("abcdefgh", "bcdefghi", strict=True))
ALIASES = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in PAIRS)
MERGES = "".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n" for a, b in PAIRS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 20_000, "nested too deeply"),
        ("a: &a [x]\n" + ALIASES, "more than 100,000 values"),
        ("a: &a {x: 1}\n" + MERGES, "more than 100,000 values"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("#" * (2 << 20), "larger than 1 MiB"),
        ("a: 2001-99-99", "not a YAML"),
        ("!!python/object/apply:os.system [id]", "not a YAML"),
    ],
)
def test_hostile_specs_are_one_error(tmp_path: Path, text: str, said: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_spec(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_of_another_kind(tmp_path: Path, kind: str):
    with pytest.raises(ConfigError, match="cannot read the spec"):
        load_spec(make(kind, tmp_path / "spec.yaml"))


def test_aliases_within_bounds_are_usable(tmp_path: Path):
    path = tmp_path / "spec.yaml"
    path.write_text("train: {num_epochs: &n 7, checkpoint_interval: *n}\n")
    assert load_spec(path).train.num_epochs == 7


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read the spec .*none\.yaml"):
        load_spec(tmp_path / "none.yaml")


def test_an_empty_file_is_taos_default(tmp_path: Path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_spec(path) == parse_spec({})
