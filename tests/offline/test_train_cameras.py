"""Training for several cameras: cameras of a batch, means of cameras, a teacher; start weights of a model."""

from __future__ import annotations

# ruff: noqa: E402  # whether torch is there decides whether the rest can be imported
import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")
pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")

import typer
from typer.testing import CliRunner

from edge_agent.cli import train as train_command
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.engine.graph.stripes import write_stripe_model
from edge_agent.offline.dataset import Split
from edge_agent.offline.evaluate.cameras import without_camera_means
from edge_agent.offline.train.augment import Augmentation
from edge_agent.offline.train.data import LeftOut, Pictures, TrainingBatches, read_folder
from edge_agent.offline.train.optim import (
    camera_contrast,
    centred_by_camera,
    teacher_distance,
    teacher_relation,
)
from edge_agent.offline.train.spec import parse_spec
from edge_agent.offline.train.teacher import teacher_embeddings, teaching_targets
from tests.offline.test_train_run import market, paint, small_spec, write_spec

__all__ = ["market"]  # a fixture

CAMERAS = {"batch_cameras": True, "brightness": 1.0, "colour_cast": 0.5, "gamma": 0.5, "saturation": 0.5}
OWN_LOSSES = {"batch_cameras": True, "camera_loss_weight": 1.0, "teacher_relation_weight": 1.0, "threads": 1}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestMeansOfCameras:
    def site(self, people: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embeddings of people on three cameras, each with an offset: rows, people, cameras."""
        rng = np.random.default_rng(seed)
        who, offset = rng.normal(size=(people, 32)), 1.5 * rng.normal(size=(3, 32))
        labels, cameras = np.repeat(np.arange(people), 6), np.tile(np.arange(3), 2 * people)
        rows = who[labels] + offset[cameras] + 0.5 * rng.normal(size=(len(labels), 32))
        return unit(rows).astype(np.float32), labels, cameras

    def found_across(self, rows: np.ndarray, people: np.ndarray, cameras: np.ndarray) -> float:
        scores = rows @ rows.T
        scores[cameras[:, None] == cameras] = -1
        scores += 0.3 * (cameras[:, None] == (cameras + 1) % 3)  # a nearer camera attracts all
        return float((people[scores.argmax(1)] == people).mean())

    def test_people_are_found_across_cameras_once_the_offsets_are_gone(self):
        rows, people, cameras = self.site()
        after = without_camera_means(rows, people, cameras)
        assert np.allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
        same = people[:, None] == people
        apart = cameras[:, None] != cameras

        def overlap(found: np.ndarray) -> float:
            scores = found @ found.T
            impostors = scores[~same & ~apart]
            return float((scores[same & apart] < np.quantile(impostors, 0.99)).mean())

        assert overlap(after) < 0.5 * overlap(rows)

    def test_a_person_counts_once_however_many_pictures_there_are(self):
        rows, people, cameras = self.site(12)
        again = np.flatnonzero(people == 3)
        more = np.concatenate([np.arange(len(rows)), np.repeat(again, 50)])
        once = without_camera_means(rows, people, cameras)
        often = without_camera_means(rows[more], people[more], cameras[more])[: len(rows)]
        assert np.allclose(once, often, atol=1e-5)

    def test_a_person_alone_on_a_camera_keeps_the_embedding(self):
        rows = unit(np.random.default_rng(1).normal(size=(3, 8))).astype(np.float32)
        after = without_camera_means(rows, np.array([1, 1, 2]), np.array([1, 1, 2]))
        assert np.allclose(after, rows, atol=1e-6)

    def test_the_weight_grows_with_the_other_people(self):
        """People at the same place but for a little: what is left of the common part is 1 - k / (k + 10)."""
        axis = np.eye(64, dtype=np.float32)
        for others in (1, 10, 40):
            rows = unit(axis[0] + 1e-3 * axis[1 : others + 2]).astype(np.float32)
            after = without_camera_means(rows, np.arange(others + 1), np.zeros(others + 1, np.int64))
            ratio = after[0, 0] / after[0, 1]
            assert ratio == pytest.approx(1000 * (1 - others / (others + 10)), rel=0.02)

    def test_the_batch_does_the_same_with_its_cameras(self):
        rows = torch.randn(12, 8)
        cameras = torch.arange(12) % 3
        found = centred_by_camera(rows, cameras)
        plain = unit(rows.numpy())
        mean = plain[1::3].mean(0)
        assert np.allclose(found[1], unit((plain[1] - 4 / 14 * mean)[None])[0], atol=1e-5)


class TestLosses:
    def test_the_contrast_of_two_people_seen_twice(self):
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        expected = math.log(math.exp(10) + 2) - 10
        found = camera_contrast(rows, torch.tensor([0, 1, 0, 1])).item()
        assert found == pytest.approx(expected, abs=1e-4)

    def test_people_seen_once_have_no_contrast(self):
        rows = torch.nn.functional.normalize(torch.randn(4, 3)).requires_grad_()
        loss = camera_contrast(rows, torch.tensor([0, 1, 2, 2]))
        loss.backward()
        assert torch.isfinite(rows.grad).all()
        assert camera_contrast(rows.detach(), torch.arange(4)).item() == 0

    def test_the_distance_to_the_teacher_ignores_the_length(self):
        rows = torch.nn.functional.normalize(torch.randn(6, 4))
        assert teacher_distance(3 * rows, rows).item() == pytest.approx(0, abs=1e-6)
        assert teacher_distance(-rows, rows).item() == pytest.approx(2, abs=1e-6)

    def test_the_relation_is_free_of_rotations_and_of_the_dimension(self):
        rows = torch.nn.functional.normalize(torch.randn(6, 4))
        turn = torch.linalg.qr(torch.randn(4, 4)).Q
        wide = torch.nn.functional.pad(rows @ turn, (0, 3))
        assert teacher_relation(rows, wide).item() == pytest.approx(0, abs=1e-9)
        assert teacher_relation(rows, rows.flip(0)).item() > 0.01


class TestCamerasOfABatch:
    def batch(self, **own: object) -> np.ndarray:
        """Grey pictures of eight people, augmented: mean colour `(8, 4, 3)` of each person and camera."""
        dataset = {"batch_size": 32, "num_instances": 4, "num_workers": 0, "re_prob": 0, "padding": 0}
        spec = parse_spec({"dataset": dataset, "edge_agent": {**CAMERAS, **own}})
        images = np.full((32, 32, 16, 3), 110, np.uint8)
        labels = np.repeat(np.arange(8), 4)
        pictures = Pictures(images, labels, labels, np.arange(8), LeftOut())
        (found,) = TrainingBatches(pictures, spec).iterate(0)
        return found.images.reshape(8, 4, -1, 3).mean(2)

    def test_people_of_one_camera_share_its_colours(self):
        colours = self.batch()
        within, between = colours.std(0).mean(), colours.mean(0).std(0).mean()
        assert between > 3 * within
        assert within > 1  # pictures of one camera are not equally bright

    def test_without_them_each_picture_has_its_own(self):
        colours = self.batch(batch_cameras=False)
        assert colours.std(0).mean() > colours.mean(0).std(0).mean()

    def test_another_batch_has_other_cameras(self):
        spec = parse_spec({"edge_agent": CAMERAS})
        image, seen = np.full((32, 16, 3), 110, np.uint8), set()
        for step in range(6):
            view, rng = np.random.default_rng((1, step)), np.random.default_rng(5)
            seen.add(Augmentation(spec.dataset, spec.edge_agent)(image, image, rng, view).tobytes())
        assert len(seen) == 6

    @pytest.mark.parametrize("factor", [1.0, 8.0])
    def test_the_smallest_size_is_that_of_the_factor(self, factor: float):
        own = {"lowres_prob": 1.0, "lowres_factor": factor}
        spec = parse_spec({"edge_agent": own, "dataset": {"padding": 0, "re_prob": 0, "prob": 0}})
        image = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
        augment = Augmentation(spec.dataset, spec.edge_agent)
        left = [augment(image, image, np.random.default_rng(n)).std() for n in range(20)]
        assert (min(left) > 0.95 * image.std()) == (factor == 1)


class TestSpec:
    @pytest.mark.parametrize(
        ("own", "sampler", "said"),
        [
            ({"camera_loss_weight": 1.0}, "softmax_triplet", "needs edge_agent.batch_cameras"),
            ({"batch_cameras": True}, "softmax", r"needs dataset\.sampler"),
            ({"teacher_loss_weight": 1.0}, "softmax", "are given together"),
            ({"teacher_path": "t.onnx"}, "softmax", "are given together"),
        ],
    )
    def test_what_has_no_effect_alone_is_refused(self, own: dict, sampler: str, said: str):
        with pytest.raises(ConfigError, match=said):
            parse_spec({"edge_agent": own, "dataset": {"sampler": sampler}})


class TestTeacher:
    def test_the_targets_are_computed_once(self, market: Path, tmp_path: Path):
        teacher = write_stripe_model(tmp_path / "stripes.onnx")
        found = read_folder(market / "bounding_box_train", Split.TRAIN)
        seen: list[tuple[int, int]] = []
        first = teacher_embeddings(
            teacher, found, cache=tmp_path / "cache", progress=lambda *step: seen.append(step)
        )
        assert seen[-1] == (32, 32)
        again = teacher_embeddings(teacher, found, cache=tmp_path / "cache", progress=None)
        assert (first == again).all()
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_a_target_has_unit_length_and_leans_to_its_person(self):
        rng = np.random.default_rng(0)
        people, cameras = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
        rows = unit(rng.normal(size=(20, 16))[people] + rng.normal(size=(80, 16)) + 3).astype(np.float32)
        targets = teaching_targets(rows, people, cameras)
        assert np.allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)
        same = people[:, None] == people
        gap = (targets @ targets.T)[same].mean() - (targets @ targets.T)[~same].mean()
        assert gap > 2 * ((rows @ rows.T)[same].mean() - (rows @ rows.T)[~same].mean())

    def test_a_broken_picture_is_named(self, market: Path, tmp_path: Path):
        folder = tmp_path / "crops"
        paint(folder, range(1, 3), 2)
        found = read_folder(folder, Split.TRAIN)
        found.paths[2].write_bytes(b"no picture")
        with pytest.raises(InputError, match=found.paths[2].name):
            teacher_embeddings(write_stripe_model(tmp_path / "stripes.onnx"), found, cache=tmp_path)


class TestRun:
    def run(self, market: Path, tmp_path: Path, **own: object) -> tuple[int, str, list[dict]]:
        teacher = write_stripe_model(tmp_path / "stripes.onnx")
        content = small_spec(market, train={"num_epochs": 1})
        content["edge_agent"] = {**OWN_LOSSES, "teacher_path": str(teacher), **own}
        content["dataset"] |= {"query_dataset_dir": None, "test_dataset_dir": None}
        spec = write_spec(tmp_path / "spec.yaml", content)
        app = typer.Typer()
        app.command()(train_command.command)
        result = CliRunner().invoke(app, [str(spec), "--results-dir", str(tmp_path / "results")])
        log = tmp_path / "results" / "train" / "training.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return result.exit_code, str(result.exception), [json.loads(line) for line in lines]

    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_a_run_with_cameras_and_a_teacher(self, market: Path, tmp_path: Path, bfloat16: bool):
        code, _, rows = self.run(market, tmp_path, bfloat16=bfloat16)
        assert code == 0
        assert set(rows[0]["losses"]) == {"identity", "triplet", "camera", "relation", "total"}
        assert all(math.isfinite(value) for value in rows[0]["losses"].values())

    def test_a_teacher_of_another_size_is_refused_with_the_way_out(self, market: Path, tmp_path: Path):
        code, said, _ = self.run(market, tmp_path, teacher_loss_weight=1.0)
        assert code != 0
        assert "model.feat_dim is 64" in said
        assert "teacher_relation_weight alone" in said
