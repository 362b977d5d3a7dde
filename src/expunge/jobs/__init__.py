"""Jobs: what a plan is made of. A room each, pure JSON in, one result file out; a result that exists is not computed again."""

from expunge.jobs.analyse import AnalyseJob
from expunge.jobs.attack import AttackJob
from expunge.jobs.difference import DifferenceJob
from expunge.jobs.erase import EraseJob
from expunge.jobs.fisher import FisherJob
from expunge.jobs.fresh_key import FreshKeyJob
from expunge.jobs.generate import GenerateJob
from expunge.jobs.given import GivenJob
from expunge.jobs.job import Job, in_order
from expunge.jobs.measure import MeasureJob
from expunge.jobs.memory import MemoryJob
from expunge.jobs.pairs import PairsJob
from expunge.jobs.wanted import WantedJob
from expunge.jobs.workspace import Workspace

__all__ = [
    "ROOMS",
    "AnalyseJob",
    "AttackJob",
    "DifferenceJob",
    "EraseJob",
    "FisherJob",
    "FreshKeyJob",
    "GenerateJob",
    "GivenJob",
    "Job",
    "MeasureJob",
    "MemoryJob",
    "PairsJob",
    "WantedJob",
    "Workspace",
    "in_order",
]

ROOMS: dict[str, type[Job]] = {
    job.room: job
    for job in (
        *(PairsJob, WantedJob, FisherJob, EraseJob, GivenJob, DifferenceJob, MemoryJob),
        *(AttackJob, FreshKeyJob, GenerateJob, MeasureJob, AnalyseJob),
    )
}
"""Kinds of jobs by the name of their room."""
