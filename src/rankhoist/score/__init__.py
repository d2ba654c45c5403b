"""Offline scoring: requests and candidates in Parquet -> scores in Parquet, in constant memory, resumable."""

from rankhoist.errors import ExtraError

try:
    import pyarrow  # noqa: F401
except ImportError as error:
    raise ExtraError("Parquet files need pyarrow: pip install 'rankhoist[score]'") from error

from rankhoist.score.job import Options
from rankhoist.score.run import Summary, run
from rankhoist.score.scorer import TableScorer

__all__ = ["Options", "Summary", "TableScorer", "run"]
