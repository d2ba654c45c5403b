"""Load tests of a server: closed and open loop, and what they found (extra `client`; plots: extra `bench`)."""

from rankhoist.loadtest.load import Load
from rankhoist.loadtest.run import Options, loadtest, table

__all__ = ["Load", "Options", "loadtest", "table"]
