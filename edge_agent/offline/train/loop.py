"""The training loop: steps, checkpoints, evaluation between epochs, stop on request.

The display (`RunLog`) and the evaluation are passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.offline.train.checkpoint import Checkpoint, load_pretrained
from edge_agent.offline.train.data import Batch, LeftOut, Pictures, TrainingBatches, normalise
from edge_agent.offline.train.network import ReidNetwork, build_network, state_of
from edge_agent.offline.train.optim import (
    CenterLoss,
    batch_hard_triplet,
    build_optimizer,
    camera_contrast,
    centred_by_camera,
    identity_loss,
    rate_factor,
    set_rates,
    teacher_distance,
    teacher_relation,
)
from edge_agent.offline.train.spec import Spec
from edge_agent.offline.train.watch import RunLog, Step

Evaluation = Callable[[Callable[[NDArray[np.uint8]], NDArray[np.float32]]], Mapping[str, float]]
"""Called with a function that embeds `(N, h, w, 3)` uint8 BGR pictures (any number); returns figures by name.
`mAP` must be among them; it selects the best checkpoint."""

_log = structlog.get_logger(__name__)


class Trainer:
    """One training run.

    `pictures` is the training split at the resolution of the network. Checkpoints go to `folder`, which is
    created if missing. `evaluation` computes figures between epochs; `watcher` receives every step.

    Raises:
        ConfigError: the data set does not match the spec.
        ModelError: the pretrained weights or the checkpoint do not match the spec.
    """

    def __init__(
        self,
        spec: Spec,
        pictures: Pictures,
        *,
        folder: Path,
        evaluation: Evaluation | None,
        watcher: RunLog,
        resume: Checkpoint | None = None,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._evaluation = evaluation
        self._watcher = watcher
        self._people = [int(person) for person in pictures.people]
        check_classes(spec, len(self._people), pictures.left_out)
        if spec.edge_agent.threads:
            torch.set_num_threads(spec.edge_agent.threads)
        self._device = _device(spec.train.gpu_ids[0])
        torch.backends.cudnn.benchmark = spec.train.cudnn.benchmark
        torch.backends.cudnn.deterministic = spec.train.cudnn.deterministic
        torch.manual_seed(spec.train.seed)
        self._network = self._fresh_network(start_weights=resume is None)
        self._averaged: dict[str, Tensor] | None = (
            state_of(self._network) if spec.edge_agent.ema_decay else None
        )
        self._optimizer = build_optimizer(self._network, spec)
        self._center: CenterLoss | None = None
        if spec.model.uses_center:
            self._center = CenterLoss(len(self._people), spec.model.feat_dim).to(self._device)
            centers = self._center.parameters()
            self._center_optimizer = torch.optim.SGD(centers, lr=spec.train.optim.center_lr)
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._device.type == "cuda")
        self._batches = TrainingBatches(pictures, spec)
        self._history: list[dict[str, float]] = []
        self._best: float | None = None
        self._epoch, self._step = 0, 0
        self._stopping = False
        if resume is not None:
            self._restore(resume)

    def stop(self) -> None:
        """Stop the run after the current step, with a checkpoint. May be called by a signal handler."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether the run ended before its last epoch by request."""
        return self._stopping and self._epoch < self._spec.train.num_epochs

    @property
    def history(self) -> list[dict[str, float]]:
        """Figures of every evaluation so far."""
        return list(self._history)

    def run(self) -> Path:
        """Train to the end, or until `stop`; return the latest checkpoint, `latest.pth`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        latest = self._folder / "latest.pth"
        while self._epoch < self._spec.train.num_epochs and not self._stopping:
            if not self._run_epoch():
                break
            self._epoch, self._step = self._epoch + 1, 0
            self._between_epochs()
            self._snapshot().write(latest)
        if self._stopping or not latest.exists():
            self._snapshot().write(latest)
        return latest

    def _run_epoch(self) -> bool:
        """Run the rest of the current epoch; return False if it was stopped early."""
        if not (count := len(self._batches.of_epoch(self._epoch))):
            raise ConfigError(
                "the training split gives no full batch: it has too few identities or pictures "
                f"for dataset.batch_size {self._spec.dataset.batch_size}"
            )
        started = time.monotonic()
        for batch in self._batches.iterate(self._epoch, first=self._step):
            set_rates(self._optimizer, rate_factor(self._spec, self._epoch + self._step / count))
            losses, accuracy = self._train_on(batch)
            self._step += 1
            now = time.monotonic()
            total, rate = self._epoch * count + self._step, self._optimizer.param_groups[0]["lr"]
            step = Step(self._epoch, self._step, count, total, losses, accuracy, rate, now - started)
            self._watcher.on_step(step)
            started = now
            if self._stopping and self._step < count:
                return False
        return True

    def _train_on(self, batch: Batch) -> tuple[dict[str, float], float]:
        """Run one step; return the losses and the classifier's accuracy on the batch."""
        self._network.train()
        x = normalise(batch.images, self._spec, self._device)
        y = torch.from_numpy(batch.labels).to(self._device)
        with self._mixed_precision():
            before, after, logits = self._network(x)
        losses = self._losses(before.float(), logits.float(), y)
        losses |= self._own_losses((after if self._network.after else before).float(), y, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(total.item()):
            raise ModelError(
                f"the loss became {total.item()} in epoch {self._epoch + 1}, step {self._step + 1}: lower "
                "train.optim.base_lr or set train.grad_clip; the last checkpoint is intact"
            )
        self._update(total)
        accuracy = (logits.argmax(1) == y).float().mean().item()
        named = {name: value.item() for name, value in losses.items()}
        return {**named, "total": total.item()}, accuracy

    def _mixed_precision(self) -> torch.autocast:
        if self._device.type == "cuda":
            return torch.autocast("cuda")
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._spec.edge_agent.bfloat16)

    def _losses(self, before: Tensor, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        model, data, optim = self._spec.model, self._spec.dataset, self._spec.train.optim
        losses = {}
        if data.sampler != "triplet":
            losses["identity"] = identity_loss(logits, y, smooth=model.label_smooth)
        if data.sampler != "softmax" and model.uses_triplet:
            losses["triplet"] = batch_hard_triplet(before, y, margin=optim.triplet_loss_margin)
        if self._center is not None:
            losses["center"] = optim.center_loss_weight * self._center(before, y)
        return losses

    def _own_losses(
        self, embeddings: Tensor, y: Tensor, targets: NDArray[np.float32] | None
    ) -> dict[str, Tensor]:
        """Losses of the section `edge_agent`, on the embedding that is exported."""
        own, losses = self._spec.edge_agent, {}
        rows = nn.functional.normalize(embeddings)
        if own.batch_cameras:
            cameras = torch.tensor([self._spec.camera_of(place) for place in range(len(y))])
            rows = centred_by_camera(embeddings, cameras.to(self._device))
            if own.camera_loss_weight:
                losses["camera"] = own.camera_loss_weight * camera_contrast(rows, y)
        if targets is not None:
            taught = torch.from_numpy(targets).to(self._device)
            if own.teacher_loss_weight:
                losses["teacher"] = own.teacher_loss_weight * teacher_distance(embeddings, taught)
            if own.teacher_relation_weight:
                losses["relation"] = own.teacher_relation_weight * teacher_relation(rows, taught)
        return losses

    def _update(self, total: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self._center is not None:
            self._center_optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()
        if self._spec.train.grad_clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._spec.train.grad_clip)
        self._scaler.step(self._optimizer)
        if self._center is not None:
            # the centres are updated on the unweighted loss: remove the weight from their gradient
            weight = self._spec.train.optim.center_loss_weight
            if weight:
                self._scaler.unscale_(self._center_optimizer)
                self._center.centers.grad.div_(weight)
                self._scaler.step(self._center_optimizer)
        self._scaler.update()
        if self._averaged is not None:
            self._average(self._averaged)

    def _average(self, averaged: dict[str, Tensor]) -> None:
        """Update the running mean; faster at the start, so that it forgets the initial classifier."""
        done = self._epoch * len(self._batches.of_epoch(self._epoch)) + self._step + 1
        decay = min(self._spec.edge_agent.ema_decay, (1 + done) / (10 + done))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value.detach().cpu(), 1 - decay)
            else:
                averaged[name].copy_(value)

    def _between_epochs(self) -> None:
        train = self._spec.train
        last = self._epoch == train.num_epochs
        steps = len(self._batches.of_epoch(self._epoch - 1))
        if self._evaluation is not None and (last or self._epoch % train.validation_interval == 0):
            network = self.evaluated_network()
            figures = self._evaluation(lambda images: embed_pictures(network, images, self._spec))
            self._history.append({"epoch": float(self._epoch), **{k: float(v) for k, v in figures.items()}})
            self._watcher.on_evaluation(self._epoch, self._epoch * steps, figures)
            if self._best is None or figures["mAP"] > self._best:
                self._best = float(figures["mAP"])
                self._snapshot().write(self._folder / "best.pth")
        if last or self._epoch % train.checkpoint_interval == 0:
            self._snapshot().write(self._folder / f"epoch_{self._epoch:03d}.pth")

    def evaluated_network(self) -> ReidNetwork:
        """Return a copy of the network for evaluation, with the averaged weights if there are any."""
        network = build_network(self._spec.model, self._spec.edge_agent, len(self._people))
        network.load_state_dict(self._averaged or self._network.state_dict())
        return network.to(self._device, memory_format=torch.channels_last).eval()  # type: ignore[no-any-return]  # torch is untyped here

    def _fresh_network(self, *, start_weights: bool) -> ReidNetwork:
        model = self._spec.model
        network = build_network(model, self._spec.edge_agent, len(self._people))
        if start_weights and model.pretrain_choice != "none":
            if model.pretrained_model_path is not None:
                load_pretrained(network, model.pretrained_model_path, choice=model.pretrain_choice)
            elif model.pretrain_choice == "finetune":
                raise ConfigError("model.pretrain_choice finetune needs model.pretrained_model_path")
            else:
                _log.warning("train.random_start", reason="model.pretrained_model_path is not set")
        network.to(self._device, memory_format=torch.channels_last)
        return network

    def _snapshot(self) -> Checkpoint:
        center = None
        if self._center is not None:
            center = {"loss": self._center.state_dict(), "optimizer": self._center_optimizer.state_dict()}
        random = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self._device)
        return Checkpoint(
            spec=self._spec.model_dump(mode="json"),
            epoch=self._epoch,
            step=self._step,
            people=self._people,
            network=state_of(self._network),
            averaged=None if self._averaged is None else dict(self._averaged),
            optimizer=self._optimizer.state_dict(),
            center=center,
            scaler=self._scaler.state_dict() if self._device.type == "cuda" else None,
            random=random,
            history=self._history,
            best=self._best,
        )

    def _restore(self, saved: Checkpoint) -> None:
        if saved.people != self._people:
            raise ModelError(
                f"the checkpoint was trained on {len(saved.people)} other people than the "
                f"{len(self._people)} of dataset.train_dataset_dir; start a new run, or use "
                "pretrain_choice finetune"
            )
        try:
            self._network.load_state_dict(saved.network)
            self._optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        if self._averaged is not None and saved.averaged is not None:
            self._averaged = dict(saved.averaged)
        if self._center is not None and saved.center is not None:
            self._center.load_state_dict(saved.center["loss"])
            self._center_optimizer.load_state_dict(saved.center["optimizer"])
        if saved.scaler is not None and self._device.type == "cuda":
            self._scaler.load_state_dict(saved.scaler)
        torch.set_rng_state(saved.random["cpu"])
        if "cuda" in saved.random and self._device.type == "cuda":
            torch.cuda.set_rng_state(saved.random["cuda"], self._device)
        self._epoch, self._step = saved.epoch, saved.step
        self._history, self._best = list(saved.history), saved.best


def _device(gpu: int) -> torch.device:
    """The GPU with this number, or the CPU of a computer without; ConfigError if others are there."""
    if not (count := torch.cuda.device_count()):
        return torch.device("cpu")
    if gpu >= count:
        raise ConfigError(f"train.gpu_ids: [{gpu}] is not there; the GPUs here are 0 to {count - 1}")
    return torch.device(f"cuda:{gpu}")


def check_classes(spec: Spec, people: int, left_out: LeftOut) -> None:
    """Refuse a spec whose number of classes differs from the data set's, which is used as in TAO."""
    why = "".join(f" ({note})" for note in left_out.notes)
    if people < 2:
        raise ConfigError(
            f"dataset.train_dataset_dir has {people} identities{why}; training needs at least two"
        )
    if "num_classes" in spec.dataset.model_fields_set and spec.dataset.num_classes != people:
        raise ConfigError(
            f"dataset.num_classes is {spec.dataset.num_classes}, but dataset.train_dataset_dir has "
            f"{people} identities{why}: correct the field, or leave it out to have them counted"
        )


def embed_pictures(network: ReidNetwork, images: NDArray[np.uint8], spec: Spec) -> NDArray[np.float32]:
    """Embed `(N, h, w, 3)` uint8 BGR at the resolution of the network: `(N, D)` float32, any length."""
    device: Any = next(network.parameters()).device
    embedded = np.zeros((len(images), spec.model.feat_dim), np.float32)
    size = spec.dataset.val_batch_size
    with torch.inference_mode():
        for start in range(0, len(images), size):
            part = np.asarray(images[start : start + size])
            embedded[start : start + size] = network(normalise(part, spec, device)).float().cpu().numpy()
    return embedded
