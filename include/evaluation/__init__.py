"""Evaluate the LLM tasks of DAGs on labelled cases, and decide with honest statistics whether a change made them worse.

cases        labelled inputs, as JSON lines
subjects     an LLM task of a DAG, as it is, with its cases and its scorer
answering    asks a subject's task about its cases, each paid once
scorers      how good an answer is; judge: a model that judges
results      what was measured, and what was accepted before
statistics   intervals, an exact paired test, how many cases it takes
verdicts     better, worse, no significant difference, or too few cases to tell
canary       both arms of a canary, from the ledger
accepting    a person decides on what is accepted
"""
