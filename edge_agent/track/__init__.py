"""From boxes of single frames to tracks of one camera.

`tracker` follows the detections of one camera, `upstream` the crops that an upstream tracker has numbered.
`kalman` is the motion model, `appearance` the statistics of cosine similarities, `association` the
assignment of detections to tracks, `tracks` the storage of one camera's tracks.
"""
