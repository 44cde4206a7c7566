"""Evaluate the LLM tasks of DAGs on labelled cases, and decide with honest statistics whether a change made them worse.

cases        labelled inputs, as JSON lines
subjects     an LLM task of a DAG, unchanged, with its cases and its scorer
answering    asks a subject's task about its cases; each answer is paid once
scorers      how good an answer is; judge: a model that judges
results      what was measured, and what was accepted before
statistics   intervals, an exact paired test, the number of cases needed
verdicts     better, worse, no significant difference, or too few cases to tell
canary       both arms of a canary, from the ledger
accepting    a person decides what is accepted
"""
