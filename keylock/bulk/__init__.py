"""Explanations of very many images by whoever holds the key: in blocks, by workers of Ray, each block charged once.

A block is a number of images. A worker explains it and writes it into one Parquet file; the process that was started
charges it, signs its receipt and only then puts the file where results are. Workers get names of files and settings,
and ask for the key themselves: neither images nor secrets travel through Ray. Needs the `ray` extra.
"""

from keylock.bulk.budget import Budget
from keylock.bulk.job import Asked, Job
from keylock.bulk.run import Outcome, run_job

__all__ = ["Asked", "Budget", "Job", "Outcome", "run_job"]
