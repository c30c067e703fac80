"""`edge-agent train`: a ReIdentificationNet from a TAO experiment spec."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from edge_agent.cli import tao
from edge_agent.cli.arguments import JsonOption, require_torch
from edge_agent.cli.output import console, print_result, progress_bar
from edge_agent.core.files import shown
from edge_agent.offline.dataset import Split

if TYPE_CHECKING:
    from rich.console import Console

    from edge_agent.offline.tao.status import StatusFile
    from edge_agent.offline.train.checkpoint import Checkpoint
    from edge_agent.offline.train.data import Pictures, PictureSet
    from edge_agent.offline.train.loop import Evaluation, Trainer
    from edge_agent.offline.train.spec import Spec


def command(
    given: Annotated[
        list[str] | None,
        Argument(
            metavar="SPEC.yaml|KEY=VALUE",
            help="TAO experiment spec, unless -e names it, and values that replace its own.",
            show_default=False,
        ),
    ] = None,
    *,
    spec: tao.SpecOption = None,
    results_dir: Annotated[
        Path | None, Option(help="Folder for checkpoints and logs, instead of the spec's results_dir.")
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Continue from the newest checkpoint in the results folder.")
    ] = False,
    tao_results: tao.ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a re-identification network; Ctrl-C stops after the current step and saves a checkpoint."""
    path, values = tao.spec_and_values(spec, given or [])
    plan = tao.load(path, values, "train")
    if results_dir is None and plan.train.results_dir is not None:
        folder = plan.train.results_dir
    else:
        folder = _results(path, results_dir or plan.results_dir or tao_results) / "train"
    status = None if tao_results is None else tao_results / "train"
    result = _train(plan, folder, resume=resume, screen=console(stderr=True), status=status)
    lines = [f"checkpoint: {result['checkpoint']}"]
    if result["best"] is not None:
        lines.append(f"best mAP {result['best']:.4f}: {folder / 'best.pth'}")
    print_result(result, lines, as_json=as_json, indent=None)


def _results(spec: Path, folder: Path | None) -> Path:
    from edge_agent.core.errors import ConfigError

    if folder is None:
        raise ConfigError(f"{spec}: results_dir is missing; set it, or give --results-dir")
    return folder


def _train(plan: Spec, folder: Path, *, resume: bool, screen: Console, status: Path | None) -> dict[str, Any]:
    # OpenMP reads this when PyTorch is loaded. Spinning threads slow a step where other work, such as the
    # augmentation, shares the cores: 6.4 instead of 1.2 s with ResNet-18 on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    require_torch("training")
    from edge_agent.offline.tao.status import StatusFile

    if plan.encryption_key is not None:
        screen.print("encryption_key has no effect: files are never encrypted here", style="yellow")
    if status is None:
        return _run(plan, folder, resume=resume, screen=screen, status=None)
    with StatusFile(status, "train") as file:
        return _run(plan, folder, resume=resume, screen=screen, status=file)


def _run(
    plan: Spec, folder: Path, *, resume: bool, screen: Console, status: StatusFile | None
) -> dict[str, Any]:
    from edge_agent.offline.tao.status import TrainingStatus
    from edge_agent.offline.train.loop import Trainer
    from edge_agent.offline.train.watch import RunLog

    start = _checkpoint_to_resume(plan, folder, resume=resume)
    pictures = _decoded(plan, "train_dataset_dir", folder, screen, Split.TRAIN)
    evaluation = _evaluation(plan, folder, screen)
    epochs = plan.train.num_epochs
    training = None if status is None else TrainingStatus(status, epochs)
    with RunLog(folder, epochs=epochs, console=screen, resumed=start is not None, status=training) as log:
        trainer = Trainer(plan, pictures, folder=folder, evaluation=evaluation, watcher=log, resume=start)
        latest = _run_until_signal(trainer)
        if training is not None:
            training.end(stopped=trainer.stopped)
    history, left_out = trainer.history, pictures.left_out
    return {
        "checkpoint": str(latest),
        "best": max((row["mAP"] for row in history), default=None),
        "history": history,
        "identities": len(pictures.people),
        "pictures": len(pictures.labels),
        "left_out": {
            "distractors": left_out.distractors,
            "junk": left_out.junk,
            "unusable": [{"path": shown(one.path), "reason": one.reason} for one in left_out.unusable],
        },
    }


def warn_of_left_out(found: PictureSet, split: Split, screen: Console) -> None:
    """Warn of pictures that are not used for their numbers or names."""
    left_out = found.left_out
    lines = list(left_out.notes)
    if split is Split.TRAIN and left_out.notes:
        people = len(set(found.identities.tolist()))
        more = people + (left_out.distractors > 0)
        lines.append(
            f"{left_out.distractors + left_out.junk} pictures are left out, and num_classes is {people}; "
            f"numbered from 1, it would be {more}{' or more' if left_out.junk else ''}"
        )
    if left_out.unusable:
        first = left_out.unusable[0]
        lines.append(
            f"{len(left_out.unusable)} files cannot be used; the first, {shown(first.path)}, {first.reason}"
        )
    for line in lines:
        screen.print(f"warning: {line}", style="yellow", soft_wrap=True)


def _checkpoint_to_resume(plan: Spec, folder: Path, *, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to continue from; None for a new run."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.checkpoint import Checkpoint

    latest = folder / "latest.pth"
    if plan.train.resume_training_checkpoint_path is not None:
        return Checkpoint.read(plan.train.resume_training_checkpoint_path)
    if resume:
        return Checkpoint.read(latest)
    if latest.exists():
        raise ConfigError(f"{folder} already holds a run: give --resume, or another results_dir")
    return None


def _decoded(plan: Spec, field: str, folder: Path, screen: Console, split: Split) -> Pictures:
    """Return the pictures of one of the spec's folders, at the input size of the network."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.data import decode, read_folder

    source: Path | None = getattr(plan.dataset, field)
    if source is None:
        raise ConfigError(f"dataset.{field} is missing: name a folder of crops in Market-1501 layout")
    found = read_folder(source, split)
    warn_of_left_out(found, split, screen)
    pool = plan.edge_agent.input_pool
    cache = plan.edge_agent.cache_dir or folder / "cache"
    with progress_bar(f"decoding {source.name}", len(found.paths), screen=screen) as bar:
        pictures = decode(
            found,
            size=(plan.model.input_height // pool, plan.model.input_width // pool),
            cache=cache,
            threads=max(1, min(plan.dataset.num_workers, os.cpu_count() or 1)),
            progress=bar.update,
        )
    if split is Split.TRAIN and plan.edge_agent.teacher_path is not None:
        return _taught(plan.edge_agent.teacher_path, found, pictures, plan, cache, screen)
    return pictures


def _taught(
    teacher: Path, found: PictureSet, pictures: Pictures, plan: Spec, cache: Path, screen: Console
) -> Pictures:
    """The training pictures with the targets of the spec's teacher."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.teacher import teacher_embeddings, teaching_targets

    with progress_bar(f"embedding with {teacher.name}", len(found.paths), screen=screen) as bar:
        vectors = teacher_embeddings(teacher, found, cache=cache, progress=bar.update)
    width = plan.model.feat_dim
    if plan.edge_agent.teacher_loss_weight and vectors.shape[1] != width:
        raise ConfigError(
            f"edge_agent.teacher_loss_weight compares embeddings of equal size, but {teacher.name} gives "
            f"{vectors.shape[1]} numbers and model.feat_dim is {width}; set feat_dim to {vectors.shape[1]}, "
            "or use teacher_relation_weight alone"
        )
    return replace(pictures, targets=teaching_targets(vectors, found.identities, found.cameras))


def _evaluation(plan: Spec, folder: Path, screen: Console) -> Evaluation | None:
    """Return a function for rank-k and mAP on the spec's query and test folders; None without them."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.validation import Validation

    data = plan.dataset
    if data.query_dataset_dir is None and data.test_dataset_dir is None:
        return None
    if data.query_dataset_dir is None or data.test_dataset_dir is None:
        raise ConfigError("evaluation needs both dataset.query_dataset_dir and dataset.test_dataset_dir")
    query = _decoded(plan, "query_dataset_dir", folder, screen, Split.QUERY)
    gallery = _decoded(plan, "test_dataset_dir", folder, screen, Split.GALLERY)
    return Validation(query, gallery, plan.re_ranking).figures


def _run_until_signal(trainer: Trainer) -> Path:
    """Train; SIGINT and SIGTERM stop after the current step with a checkpoint."""
    import signal

    import torch

    from edge_agent.core.errors import ConfigError

    stopping = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: trainer.stop()) for number in stopping}
    try:
        return trainer.run()
    except (MemoryError, torch.cuda.OutOfMemoryError) as problem:
        raise ConfigError(
            "not enough memory: choose a smaller dataset.batch_size or dataset.val_batch_size;"
            f" --resume continues from the last checkpoint ({str(problem).partition('. ')[0]})"
        ) from problem
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
