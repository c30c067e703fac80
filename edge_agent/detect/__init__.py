"""Person detection: HOG, YOLOX, boxes of an upstream detector, or none; and the motion gate.

Scores are comparable within one detector only, so each detector has its own levels (`ScoreLevels`).
"""
