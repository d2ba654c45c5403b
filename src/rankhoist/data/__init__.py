"""Ranking data sets: a seeded request log with known truth, and MovieLens folders, in one form."""

from rankhoist.data.features import Feature
from rankhoist.data.log import Catalogue, DataError, InteractionLog
from rankhoist.data.movielens import load_movielens
from rankhoist.data.ranking import RankingData, Request
from rankhoist.data.request_log import generate_request_log

__all__ = [
    "Catalogue",
    "DataError",
    "Feature",
    "InteractionLog",
    "RankingData",
    "Request",
    "generate_request_log",
    "load_movielens",
]
