"""A page that shows a run: loads per engine over time, queue depth, time to first token, staircases of cold waves.

`python -m load.plots FILE… -o OUT.png` draws recorded events (`events.py` has their form); `python -m
load.plots.from_traces FOLDER` makes such events from the traces that a stack kept.
"""
