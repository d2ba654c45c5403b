"""Ranking data sets: a seeded request log with known truth, MovieLens and KuaiRand folders, in one form."""

from rankhoist.lab.data.features import Feature
from rankhoist.lab.data.folder import load_folder
from rankhoist.lab.data.kuairand import load_kuairand
from rankhoist.lab.data.labelled import LabelledRows
from rankhoist.lab.data.log import Attribute, Catalogue, DataError, InteractionLog
from rankhoist.lab.data.movielens import load_movielens
from rankhoist.lab.data.ranking import RankingData, Request
from rankhoist.lab.data.request_log import generate_request_log

__all__ = [
    "Attribute",
    "Catalogue",
    "DataError",
    "Feature",
    "InteractionLog",
    "LabelledRows",
    "RankingData",
    "Request",
    "generate_request_log",
    "load_folder",
    "load_kuairand",
    "load_movielens",
]
