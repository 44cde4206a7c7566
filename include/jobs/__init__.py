"""Long jobs at a provider that cost money: each task instance has one, whatever is killed or restarted meanwhile.

The job carries the task instance's key in its metadata, so that the provider itself says whether it exists. A record
on the project's storage says what the provider can't: that a job was about to be created (its answer may be lost),
and whether the task was cleared since (only then may another follow one that failed or was cancelled).
"""
