"""Person detection: HOG, networks of several kinds, upstream boxes, or none; and the motion gate.

Scores are comparable within one detector only, so each detector has its own levels (`ScoreLevels`).
"""
