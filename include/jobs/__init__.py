"""Long jobs at a provider that cost money: one per task instance, even across kills and restarts.

The job carries the task instance's key in its metadata, so that the provider itself can say whether it exists. A record
on the project's storage holds what the provider cannot know: that a job was about to be created (the answer may be
lost), and whether the task was cleared since (only then may another job follow one that failed or was cancelled).
"""
