"""Judging decisions: scores with intervals, tables for the terminal, curves of a training, the report of a run.

Knows arrays of targets and decisions, and label names; knows nothing about models, tokens or where the texts came from.
"""
