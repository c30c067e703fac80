"""Identity quality and host overhead of one run over a video with ground truth.

    python benchmarks/identity.py --video vtest.avi --truth vtest_gt.txt \
        --detector yolox:yolox_nano.onnx --model osnet.onnx --preprocess imagenet

The match threshold is set by the site's own rule unless the model has a calibrated one; nothing is fitted to
the video. Overhead is the wall time of the whole run over the total time in the detector's and the ReID
network's `session.run`, in one process and one run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.scoring import PETS_VISITS, people_of, read_mot, score


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--video", type=Path, required=True)
    options.add_argument("--truth", type=Path, required=True, help="MOTChallenge ground truth")
    options.add_argument("--visits", default=PETS_VISITS, help="visits joined into people, 'a,b|c'")
    options.add_argument("--detector", default="hog")
    options.add_argument("--model", type=Path)
    options.add_argument("--preprocess")
    options.add_argument("--motion", action="store_true", help="with the motion gate")
    chosen = options.parse_args()
    began = time.perf_counter()
    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.outputs import Outputs
    from edge_agent.cli.arguments import overrides
    from edge_agent.core.loading import load
    from edge_agent.core.logs import configure

    configure("warning")
    with tempfile.TemporaryDirectory() as folder:
        values = overrides(
            source=[str(chosen.video)], detector=chosen.detector, model=chosen.model,
            preprocess=chosen.preprocess, broker="none", state=Path(folder) / "state",
        )  # fmt: skip
        values["motion"] = {"enabled": chosen.motion}
        mot, final = Path(folder) / "mot.txt", Path(folder) / "final.txt"
        agent = Agent(load(None, values), Outputs(mot=mot, mot_final=final))
        summary = agent.run(threading.Event())
        wall = time.perf_counter() - began
        truth, people = read_mot(chosen.truth, truth=True), people_of(chosen.visits)
        networks = summary.engine_seconds + summary.detector_seconds
        result = {
            "online": asdict(score(read_mot(mot), truth, people)),
            "final": asdict(score(read_mot(final), truth, people)),
            "wall_s": round(wall, 2),
            "networks_s": round(networks, 2),
            "overhead": round(wall / networks, 3) if networks else None,
            "stages_s": {stage: round(s, 2) for stage, s in summary.stage_seconds.items()},
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
