"""From boxes of single frames to tracks of one camera.

`tracker` follows the detections of one camera, or the crops that an upstream tracker has numbered;
`association` assigns detections to tracks, `kalman` is the motion model, `tracks` the storage.
"""
