"""Specs as NVIDIA ships them, or as TAO writes them with all defaults, by release.

Names and values are those of the schemas: tao_pytorch_backend (5.0, 5.5) and tao-core (the others).
"""

from __future__ import annotations

from typing import Any

MUST_BE_GIVEN = "???"


def release_5_0() -> dict[str, Any]:
    """The spec file of TAO 5.0: paths must be given, results folders are looked up."""
    return {
        "results_dir": MUST_BE_GIVEN,
        "encryption_key": "nvidia_tao",
        "model": {
            "backbone": "resnet_50",
            "last_stride": 1,
            "pretrain_choice": "imagenet",
            "pretrained_model_path": MUST_BE_GIVEN,
            "input_channels": 3,
            "input_width": 128,
            "input_height": 256,
            "neck": "bnneck",
            "feat_dim": 256,
            "neck_feat": "after",
            "metric_loss_type": "triplet",
            "with_center_loss": False,
            "with_flip_feature": False,
            "label_smooth": True,
        },
        "dataset": {
            "train_dataset_dir": MUST_BE_GIVEN,
            "test_dataset_dir": MUST_BE_GIVEN,
            "query_dataset_dir": MUST_BE_GIVEN,
            "num_classes": 751,
            "batch_size": 64,
            "val_batch_size": 128,
            "num_workers": 8,
            "pixel_mean": [0.485, 0.456, 0.406],
            "pixel_std": [0.226, 0.226, 0.226],
            "padding": 10,
            "prob": 0.5,
            "re_prob": 0.5,
            "sampler": "softmax_triplet",
            "num_instances": 4,
        },
        "re_ranking": {"re_ranking": True, "k1": 20, "k2": 6, "lambda_value": 0.3},
        "train": {
            "results_dir": "${results_dir}/train",
            "optim": {
                "name": "Adam",
                "steps": [40, 70],
                "gamma": 0.1,
                "bias_lr_factor": 1,
                "weight_decay": 0.0005,
                "weight_decay_bias": 0.0005,
                "warmup_factor": 0.01,
                "warmup_iters": 10,
                "warmup_method": "linear",
                "base_lr": 0.00035,
                "momentum": 0.9,
                "center_loss_weight": 0.0005,
                "center_lr": 0.5,
                "triplet_loss_margin": 0.3,
            },
            "num_epochs": 120,
            "checkpoint_interval": 10,
        },
        "inference": {
            "results_dir": "${results_dir}/inference",
            "checkpoint": MUST_BE_GIVEN,
            "output_file": MUST_BE_GIVEN,
            "test_dataset": MUST_BE_GIVEN,
            "query_dataset": MUST_BE_GIVEN,
        },
        "evaluate": {
            "results_dir": "${results_dir}/evaluate",
            "checkpoint": MUST_BE_GIVEN,
            "output_sampled_matches_plot": MUST_BE_GIVEN,
            "output_cmc_curve_plot": MUST_BE_GIVEN,
            "test_dataset": MUST_BE_GIVEN,
            "query_dataset": MUST_BE_GIVEN,
        },
        "export": {"results_dir": "${results_dir}/export", "checkpoint": MUST_BE_GIVEN},
    }


def release_5_5() -> dict[str, Any]:
    """All fields of TAO 5.5 at their defaults, as `experiment.yaml` in its results has them."""
    spec = release_5_0()
    spec |= {"results_dir": "/results", "encryption_key": None}
    spec["model"] |= {
        "pretrained_model_path": None,
        "pretrain_hw_ratio": 2,
        "id_loss_type": "softmax",
        "id_loss_weight": 1.0,
        "triplet_loss_weight": 1.0,
        "no_margin": False,
        "cos_layer": False,
        "dropout_rate": 0.0,
        "reduce_feat_dim": False,
        "drop_path": 0.1,
        "drop_out": 0.0,
        "att_drop_rate": 0.0,
        "stride_size": [16, 16],
        "gem_pooling": False,
        "stem_conv": False,
        "jpm": False,
        "shift_num": 5,
        "shuffle_group": 2,
        "devide_length": 4,
        "re_arrange": True,
        "sie_coe": 3.0,
        "sie_camera": False,
        "sie_view": False,
        "semantic_weight": 1.0,
    }
    folders = ("train_dataset_dir", "test_dataset_dir", "query_dataset_dir")
    spec["dataset"] |= dict.fromkeys(folders)
    spec["re_ranking"] |= {"re_ranking": False, "max_rank": 10, "num_query": 10}
    optim = spec["train"]["optim"]
    optim["lr_steps"] = optim.pop("steps")
    optim |= {
        "lr_monitor": "val_loss",
        "warmup_epochs": 20,
        "large_fc_lr": False,
        "cosine_margin": 0.5,
        "cosine_scale": 30,
        "trp_l2": False,
    }
    devices = {"num_gpus": 1, "gpu_ids": [0], "num_nodes": 1}
    spec["train"] |= devices | {
        "seed": 1234,
        "cudnn": {"benchmark": False, "deterministic": True},
        "num_epochs": 10,
        "checkpoint_interval": 1,
        "validation_interval": 1,
        "resume_training_checkpoint_path": None,
        "results_dir": None,
        "grad_clip": 0.0,
    }
    sides = {"test_dataset": None, "query_dataset": None}
    command = devices | sides | {"checkpoint": MUST_BE_GIVEN, "results_dir": None}
    spec["inference"] = command | {"output_file": None}
    spec["evaluate"] = command | {"output_sampled_matches_plot": None, "output_cmc_curve_plot": None}
    spec["export"] = {"results_dir": None, "checkpoint": None, "onnx_file": None, "gpu_id": 0}
    spec["wandb"] = {
        "enable": True,
        "project": "TAO Toolkit",
        "entity": "",
        "tags": ["training", "tao-toolkit"],
        "reinit": False,
        "sync_tensorboard": False,
        "save_code": False,
        "name": "TAO Toolkit training experiment",
    }
    return spec


def release_7() -> dict[str, Any]:
    """All fields of tao-core's schema in 2026 at the defaults of its templates: no path is an empty text."""
    spec = release_5_5()
    spec |= {"model_name": "", "encryption_key": ""}
    spec["wandb"] |= {"run_id": "", "group": ""}
    spec["train"] |= {
        "checkpoint_interval_unit": "epoch",
        "resume_training_checkpoint_path": "",
        "results_dir": "",
        "checkpointer": {
            "enable_topk": False,
            "replace_periodic": False,
            "monitor": None,
            "mode": None,
            "save_top_k": 1,
            "filename": "model_best_{epoch:03d}",
            "dirpath": None,
            "auto_insert_metric_name": False,
        },
    }
    spec["model"]["pretrained_model_path"] = ""
    for name in ("evaluate", "inference"):
        spec[name] |= {"trt_engine": "", "batch_size": -1, "checkpoint": "", "results_dir": ""}
    for name in ("train_dataset_dir", "test_dataset_dir", "query_dataset_dir"):
        spec["dataset"][name] = ""
    return spec


def swin() -> dict[str, Any]:
    """The spec file for Swin that NVIDIA ships since TAO 5.2."""
    spec = release_5_0()
    spec["results_dir"] = "results/market1501"
    spec["model"] |= {
        "backbone": "swin_tiny_patch4_window7_224",
        "pretrain_choice": "self",
        "pretrained_model_path": "/model/swintiny_pretrained.pth",
        "stride_size": [16, 16],
        "reduce_feat_dim": True,
        "no_margin": True,
        "label_smooth": False,
        "pretrain_hw_ratio": 2,
    }
    spec["dataset"] |= {"pixel_mean": [0.5, 0.5, 0.5], "pixel_std": [0.5, 0.5, 0.5]}
    folders = ("train_dataset_dir", "test_dataset_dir", "query_dataset_dir")
    spec["dataset"] |= dict.fromkeys(folders, "/data")
    optim = spec["train"]["optim"]
    optim |= {"name": "SGD", "lr_steps": optim.pop("steps"), "warmup_epochs": 20, "warmup_method": "cosine"}
    spec["train"].pop("results_dir")
    return {key: spec[key] for key in ("results_dir", "model", "dataset", "re_ranking", "train")}
