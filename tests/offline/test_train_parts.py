"""Losses against hand-made values, batches, augmentation, network shapes, learning rates."""

from __future__ import annotations

# ruff: noqa: E402  # whether torch is there decides whether the rest can be imported
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")

from edge_agent.core.errors import DatasetError, InputError, ModelError
from edge_agent.offline.dataset import Split
from edge_agent.offline.train.augment import Augmentation
from edge_agent.offline.train.checkpoint import load_pretrained
from edge_agent.offline.train.data import LeftOut, PictureSet, decode, identity_batches, shuffled_batches
from edge_agent.offline.train.network import Deployed, build_network
from edge_agent.offline.train.optim import (
    CenterLoss,
    batch_hard_triplet,
    build_optimizer,
    identity_loss,
    pairwise_distances,
    rate_factor,
)
from edge_agent.offline.train.spec import ModelSection, Spec, parse_spec
from edge_agent.offline.train.spec_file import load_spec
from tests.core.test_pictures import PLAIN, damaged


class TestLosses:
    def test_identity_loss_of_even_logits_is_the_logarithm_of_the_classes(self):
        loss = identity_loss(torch.zeros(3, 8), torch.tensor([0, 3, 7]), smooth=True)
        assert loss.item() == pytest.approx(math.log(8), abs=1e-6)

    def test_label_smoothing_shares_a_tenth_between_all_classes(self):
        logits = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
        log_p = [2 - math.log(math.e**2 + 3), -math.log(math.e**2 + 3)]
        expected = -(0.9 + 0.1 / 4) * log_p[0] - 3 * (0.1 / 4) * log_p[1]
        assert identity_loss(logits, torch.tensor([0]), smooth=True).item() == pytest.approx(
            expected, abs=1e-6
        )
        assert identity_loss(logits, torch.tensor([0]), smooth=False).item() == pytest.approx(
            -log_p[0], abs=1e-6
        )

    def test_triplet_takes_the_farthest_positive_and_the_nearest_negative(self):
        # On a line: person 0 at 0 and 1, person 1 at 3 and 7.
        points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        people = torch.tensor([0, 0, 1, 1])
        # gaps: 1 - 3, 1 - 2, 4 - 2, 4 - 6; plus 0.3, below zero counts 0
        assert batch_hard_triplet(points, people, margin=0.3).item() == pytest.approx(2.3 / 4, abs=1e-5)

    def test_triplet_without_margin_is_soft(self):
        points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        expected = sum(math.log1p(math.exp(gap)) for gap in (-2, -1, 2, -2)) / 4
        found = batch_hard_triplet(points, torch.tensor([0, 0, 1, 1]), margin=0)
        assert found.item() == pytest.approx(expected, abs=1e-5)

    def test_people_without_a_second_picture_count_nothing(self):
        points = torch.tensor([[0.0], [1.0], [1.5]])
        found = batch_hard_triplet(points, torch.tensor([0, 0, 1]), margin=0.3)
        # anchors 0 and 1 only: 1 - 1.5 + 0.3 < 0, and 1 - 0.5 + 0.3
        assert found.item() == pytest.approx(0.8 / 2, abs=1e-5)

    def test_one_person_alone_gives_zero_not_nan(self):
        assert batch_hard_triplet(torch.randn(3, 4), torch.tensor([5, 5, 5]), margin=0.3).item() == 0

    def test_equal_embeddings_have_a_finite_gradient(self):
        points = torch.ones(4, 3, requires_grad=True)
        batch_hard_triplet(points, torch.tensor([0, 0, 1, 1]), margin=0.3).backward()
        assert torch.isfinite(points.grad).all()

    def test_distances_agree_with_numpy(self):
        points = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
        expected = np.linalg.norm(points[:, None] - points[None], axis=2)
        assert np.allclose(pairwise_distances(torch.from_numpy(points)).numpy(), expected, atol=2e-3)

    def test_center_loss_is_the_mean_squared_distance_to_the_own_center(self):
        loss = CenterLoss(2, 2)
        with torch.no_grad():
            loss.centers.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        found = loss(torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([0, 1]))
        assert found.item() == pytest.approx((25 + 1) / 2)


class TestSampler:
    labels = np.repeat(np.arange(10), [4, 5, 9, 12, 2, 8, 8, 8, 4, 30])

    def batches(self, epoch: int = 0, seed: int = 3) -> list[np.ndarray]:
        return identity_batches(self.labels, batch_size=16, instances=4, seed=seed, epoch=epoch)

    def test_every_batch_has_four_pictures_of_four_different_people(self):
        assert self.batches()
        for batch in self.batches():
            people, counts = np.unique(self.labels[batch], return_counts=True)
            assert len(people) == 4
            assert (counts == 4).all()

    def test_a_picture_comes_once_an_epoch_unless_its_person_has_too_few(self):
        pictures, counts = np.unique(np.concatenate(self.batches()), return_counts=True)
        assert set(self.labels[pictures[counts > 1]]) <= {4}

    def test_same_seed_and_epoch_give_the_same_batches(self):
        assert all((a == b).all() for a, b in zip(self.batches(5), self.batches(5), strict=True))
        assert not all((a == b).all() for a, b in zip(self.batches(5), self.batches(6), strict=False))

    def test_too_few_people_give_no_batch(self):
        assert identity_batches(np.zeros(50, np.int64), batch_size=16, instances=4, seed=0, epoch=0) == []

    def test_shuffling_uses_every_picture_at_most_once(self):
        batches = list(shuffled_batches(50, batch_size=8, seed=0, epoch=0))
        assert [len(batch) for batch in batches] == [8] * 6
        assert len(np.unique(np.concatenate(batches))) == 48


class TestAugmentation:
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)

    def augmented(self, seed: int, **own: object) -> np.ndarray:
        spec = parse_spec({"edge_agent": own})
        return Augmentation(spec.dataset, spec.edge_agent)(
            self.image, 255 - self.image, np.random.default_rng(seed)
        )

    def test_the_defaults_change_no_colour(self):
        spec = parse_spec({"dataset": {"padding": 0, "re_prob": 0, "prob": 0}})
        same = Augmentation(spec.dataset, spec.edge_agent)(self.image, self.image, np.random.default_rng(1))
        assert np.abs(same.astype(int) - self.image).max() <= 1

    def test_mirror(self):
        spec = parse_spec({"dataset": {"padding": 0, "re_prob": 0, "prob": 1}})
        mirrored = Augmentation(spec.dataset, spec.edge_agent)(
            self.image, self.image, np.random.default_rng(1)
        )
        assert np.abs(mirrored.astype(int) - self.image[:, ::-1]).max() <= 1

    def test_erasing_fills_with_the_mean_colour(self):
        spec = parse_spec({"dataset": {"padding": 0, "re_prob": 1, "prob": 0}})
        erased = Augmentation(spec.dataset, spec.edge_agent)(self.image, self.image, np.random.default_rng(1))
        mean_bgr = [int(255 * value) for value in (0.406, 0.456, 0.485)]
        share = (erased == mean_bgr).all(2).mean()
        assert 0.02 <= share <= 0.45

    def test_padding_shifts_within_a_black_border(self):
        spec = parse_spec({"dataset": {"padding": 10, "re_prob": 0, "prob": 0}})
        moved = Augmentation(spec.dataset, spec.edge_agent)(self.image, self.image, np.random.default_rng(3))
        assert moved.shape == self.image.shape
        assert (moved == 0).all(2).mean() > 0

    @pytest.mark.parametrize(
        "own",
        [
            {"brightness": 0.5, "contrast": 0.4, "saturation": 0.5, "gamma": 0.5, "colour_cast": 0.3},
            {"grey_prob": 1.0},
            {"lighting_prob": 1.0},
            {"blur_prob": 1.0},
            {"noise_prob": 1.0},
            {"jpeg_prob": 1.0},
            {"lowres_prob": 1.0},
            {"occlusion_prob": 1.0},
            {"zoom": 0.3},
        ],
        ids=lambda own: next(iter(own)),
    )
    def test_each_step_works_keeps_the_shape_and_follows_its_generator(self, own: dict[str, float]):
        plain = [self.augmented(seed) for seed in range(4)]
        changed = [self.augmented(seed, **own) for seed in range(4)]
        assert all(image.shape == self.image.shape and image.dtype == np.uint8 for image in changed)
        assert any((a != b).any() for a, b in zip(plain, changed, strict=True))
        assert (changed[0] == self.augmented(0, **own)).all()

    def test_grey_is_grey(self):
        grey = self.augmented(2, grey_prob=1.0).astype(int)
        spread = grey.max(2) - grey.min(2)
        # erased pixels have the mean's colour, all others none
        assert np.percentile(spread, 50) <= 1


class TestNetwork:
    @pytest.mark.parametrize("backbone", ["resnet_18", "resnet_34", "mobilenet_v2"])
    @pytest.mark.parametrize("neck_feat", ["before", "after"])
    def test_embedding_shape_and_training_outputs(self, backbone: str, neck_feat: str):
        spec = parse_spec({"model": {"backbone": backbone, "neck_feat": neck_feat, "feat_dim": 128}})
        network = build_network(spec.model, spec.edge_agent, 7)
        before, _, logits = network.train()(torch.randn(2, 3, 64, 32))
        assert before.shape == (2, 128)
        assert logits.shape == (2, 7)
        assert network.eval()(torch.randn(3, 3, 64, 32)).shape == (3, 128)

    @pytest.mark.slow
    @pytest.mark.parametrize("backbone", ["resnet_50", "resnet_101", "resnet_152"])
    def test_large_backbones(self, backbone: str):
        spec = parse_spec({"model": {"backbone": backbone, "feat_dim": 2048}})
        network = build_network(spec.model, spec.edge_agent, 7).eval()
        assert isinstance(network.embedding, torch.nn.Identity)
        with torch.inference_mode():
            assert network(torch.randn(1, 3, 256, 128)).shape == (1, 2048)

    def test_last_stride_doubles_the_map(self):
        shapes = []
        for stride in (1, 2):
            model = ModelSection(backbone="resnet_18", last_stride=stride)
            network = build_network(model, Spec().edge_agent, 2).eval()
            x = torch.zeros(1, 3, 256, 128)
            for stage in network.backbone.stages():
                x = stage(x)
            shapes.append(tuple(x.shape[2:]))
        assert shapes == [(16, 8), (8, 4)]

    def test_parameter_names_are_torchvisions(self):
        spec = Spec()
        names = set(build_network(spec.model, spec.edge_agent, 2).backbone.state_dict())
        assert {"conv1.weight", "layer1.0.downsample.1.running_mean", "layer4.2.conv3.weight"} <= names
        light = ModelSection(backbone="mobilenet_v2")
        names = set(build_network(light, spec.edge_agent, 2).backbone.state_dict())
        assert {"features.0.0.weight", "features.1.conv.0.1.bias", "features.2.conv.1.0.weight"} <= names
        assert {"features.17.conv.3.running_var", "features.18.0.weight"} <= names

    def test_number_of_weights_is_that_of_the_papers(self):
        def count(name: str) -> int:
            model = ModelSection(backbone=name)
            backbone = build_network(model, Spec().edge_agent, 2).backbone
            return sum(parameter.numel() for parameter in backbone.parameters())

        # torchvision's 11,689,512 and 3,504,872 without their 1000-class layers
        assert count("resnet_18") == 11_689_512 - 513_000
        assert count("mobilenet_v2") == 3_504_872 - 1_281_000

    def test_the_linear_layer_is_left_out_at_the_backbones_width(self):
        own = Spec().edge_agent
        same = build_network(ModelSection(backbone="resnet_18", feat_dim=512), own, 2)
        assert isinstance(same.embedding, torch.nn.Identity)
        forced = build_network(ModelSection(backbone="resnet_18", feat_dim=512, reduce_feat_dim=True), own, 2)
        assert isinstance(forced.embedding, torch.nn.Linear)

    def test_mirrored_embedding_does_not_see_the_side(self):
        model = ModelSection(backbone="resnet_18", with_flip_feature=True)
        network = build_network(model, Spec().edge_agent, 2).eval()
        x = torch.randn(2, 3, 64, 32)
        with torch.inference_mode():
            assert torch.allclose(network(x), network(x.flip(3)), atol=1e-4)

    def test_frozen_stages_keep_weights_and_statistics(self):
        spec = parse_spec({"model": {"backbone": "mobilenet_v2"}, "edge_agent": {"frozen_stages": 3}})
        network = build_network(spec.model, spec.edge_agent, 5).train()
        before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
        optimizer = build_optimizer(network, spec)
        *_, logits = network(torch.randn(4, 3, 64, 32))
        logits.square().mean().backward()
        optimizer.step()
        changed = {
            name.split(".")[1]
            for name, value in network.backbone.state_dict().items()
            if (value != before[name]).any()
        }
        assert changed == {str(number) for number in range(3, 19)}

    def test_stripes_see_where_a_colour_is(self):
        spec = parse_spec(
            {"model": {"backbone": "mobilenet_v2"}, "edge_agent": {"part_stripes": 4, "part_levels": [7, 14]}}
        )
        network = build_network(spec.model, spec.edge_agent, 5)
        assert network.embedding.in_features == 1280 + 4 * (32 + 96)

    def test_deployed_averages_first(self):
        spec = parse_spec({"model": {"backbone": "mobilenet_v2"}, "edge_agent": {"input_pool": 2}})
        network = build_network(spec.model, spec.edge_agent, 5).eval()
        x = torch.randn(2, 3, 256, 128)
        small = x.reshape(2, 3, 128, 2, 64, 2).mean((3, 5))
        with torch.inference_mode():
            assert torch.allclose(Deployed(network, 2)(x), network(small), atol=1e-4)

    def test_mixstyle_mixes_only_while_training(self):
        spec = parse_spec({"model": {"backbone": "mobilenet_v2"}, "edge_agent": {"mixstyle_prob": 1.0}})
        mix = build_network(spec.model, spec.edge_agent, 5).mixstyle
        x = torch.randn(4, 3, 8, 4) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1)
        assert not torch.equal(mix.train()(x), x)
        assert torch.equal(mix.eval()(x), x)


class TestStartWeights:
    def network(self):
        spec = parse_spec({"model": {"backbone": "resnet_18"}})
        return build_network(spec.model, spec.edge_agent, 3)

    def test_torchvision_files_load_without_their_classifier(self, tmp_path: Path):
        source, target = self.network(), self.network()
        weights = dict(source.backbone.state_dict())
        weights["fc.weight"], weights["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
        weights = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
        torch.save(weights, tmp_path / "resnet18.pth")
        load_pretrained(target, tmp_path / "resnet18.pth", choice="imagenet")
        assert torch.equal(target.backbone.layer4[1].conv2.weight, source.backbone.layer4[1].conv2.weight)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda w: w.pop("conv1.weight"), "1 missing .first: conv1.weight"),
            (lambda w: w.update({"other": torch.zeros(1)}), "1 unknown .first: other"),
            (
                lambda w: w.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
                r"conv1.weight is \(64, 1, 7, 7\)",
            ),
        ],
    )
    def test_weights_that_do_not_fit_are_named(self, tmp_path: Path, change, said: str):
        weights = dict(self.network().backbone.state_dict())
        change(weights)
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(ModelError, match=said):
            load_pretrained(self.network(), tmp_path / "w.pth", choice="imagenet")

    def test_a_file_that_would_run_code_is_refused(self, tmp_path: Path):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(ModelError, match="loaded safely"):
            load_pretrained(self.network(), tmp_path / "evil.pth", choice="imagenet")
        assert not (tmp_path / "ran").exists()

    def test_a_missing_file(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"cannot read .*none\.pth"):
            load_pretrained(self.network(), tmp_path / "none.pth", choice="imagenet")


class TestRates:
    def test_multi_step_with_linear_warm_up(self):
        spec = Spec()
        assert rate_factor(spec, 0) == pytest.approx(0.01)
        assert rate_factor(spec, 5) == pytest.approx(0.01 + 0.99 * 0.5)
        assert [rate_factor(spec, epoch) for epoch in (10, 39, 40, 69, 70, 119)] == pytest.approx(
            [1, 1, 0.1, 0.1, 0.01, 0.01]
        )

    def test_constant_warm_up(self):
        spec = parse_spec({"train": {"optim": {"warmup_method": "constant"}}})
        assert rate_factor(spec, 9.9) == pytest.approx(0.01)
        assert rate_factor(spec, 10) == 1

    def test_cosine(self):
        spec = parse_spec({"train": {"num_epochs": 120, "optim": {"warmup_method": "cosine"}}})
        assert rate_factor(spec, 20) == 1
        assert rate_factor(spec, 70) == pytest.approx(0.002 + 0.998 * 0.5)
        assert rate_factor(spec, 120) == pytest.approx(0.002)

    def test_groups_have_their_own_rates_and_decay(self):
        spec = parse_spec(
            {
                "model": {"backbone": "resnet_18"},
                "train": {
                    "optim": {
                        "large_fc_lr": True,
                        "bias_lr_factor": 2,
                        "weight_decay_bias": 0,
                        "base_lr": 0.1,
                    }
                },
                "edge_agent": {"backbone_lr_factor": 0.5},
            }
        )
        network = build_network(spec.model, spec.edge_agent, 3)
        groups = {(round(g["lr"], 6), g["weight_decay"]) for g in build_optimizer(network, spec).param_groups}
        # backbone weights, backbone biases, embedding and neck, classifier
        assert groups == {(0.05, 5e-4), (0.1, 0.0), (0.1, 5e-4), (0.2, 5e-4)}


def test_a_folder_without_people_is_refused(tmp_path: Path):
    from edge_agent.offline.train.data import read_folder

    with pytest.raises(DatasetError):
        read_folder(tmp_path, Split.TRAIN)
    (tmp_path / "-1_c1s1_000001_00.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match="no picture of a person"):
        read_folder(tmp_path, Split.TRAIN)


ENGINES = Path(__file__).resolve().parents[2] / "engines"


def script(name: str):
    """A script of `engines/` as a module."""
    found = importlib.util.spec_from_file_location(name, ENGINES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class TestScriptsOfTheDefaultModel:
    def test_its_spec_is_one(self):
        pytest.importorskip("yaml", reason="PyYAML is not installed")
        spec = load_spec(ENGINES / "default.yaml")
        assert (spec.model.backbone, spec.edge_agent.input_pool) == ("mobilenet_v2", 2)

    def test_every_converted_name_is_a_parameter_of_the_network(self):
        model = ModelSection(backbone="mobilenet_v2")
        names = set(build_network(model, Spec().edge_agent, 2).backbone.state_dict())
        flat = {"features.0.0.weight", "features.18.1.running_var"}
        flat |= {
            f"features.1.conv.{place}.{kind}" for place, kind in [(0, "weight"), (1, "bias"), (3, "weight")]
        }
        flat |= {f"features.{n}.conv.{p}.weight" for n in range(2, 18) for p in (0, 1, 3, 4, 6, 7)}
        converted = {script("start_weights").torchvision_name(name) for name in flat}
        assert len(converted) == len(flat)
        assert converted <= names

    def test_the_curve_is_drawn(self):
        curve = script("curve")
        rows = [
            {"step": 20, "losses": {"identity": 7.0, "triplet": 0.7}},
            {"step": 40, "evaluation": {"mAP": 0.5, "rank1": 1.0}},
        ]
        assert curve.curves(rows)["identity"] == [(20, 1.0)]
        assert curve.svg(curve.curves(rows)).count("<polyline") == 9


def test_unreadable_training_pictures_are_all_named(tmp_path: Path):
    names = [f"000{person}_c1s1_00000{person}_00.jpg" for person in range(1, 5)]
    for name in names:
        (tmp_path / name).write_bytes(PLAIN)
    (tmp_path / names[1]).write_bytes(damaged(PLAIN, "zeros", np.random.default_rng(5)))
    (tmp_path / names[3]).write_bytes(PLAIN[:500])
    paths, numbers = tuple(tmp_path / name for name in names), np.arange(4)
    pictures = PictureSet(paths, numbers, numbers, LeftOut(0, 0, (), ()))
    with pytest.raises(InputError, match="2 training pictures cannot be read") as found:
        decode(pictures, size=(64, 32), cache=tmp_path / "cache", threads=2)
    assert names[1] in str(found.value)
    assert names[3] in str(found.value)
    assert list((tmp_path / "cache").iterdir()) == []
