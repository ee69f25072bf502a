"""The gateway: HTTP for users, intake of training requests from the bus. It never imports torch.

`hot_path.py` serves inference as a raw ASGI application in front of the control API (`control/`); `intake.py` is the
only place where a training request becomes a job.
"""
