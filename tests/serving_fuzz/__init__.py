"""Requests to a server, most broken on purpose, by structure: headers, shapes, dtypes, bytes, JSON, HTTP, gRPC.

A request starts out valid. A breaker changes one thing about it, and says whether what comes out is surely wrong (then
the server must refuse it, with a 4xx) or may still be right by chance.
"""

from serving_fuzz.breakers import LIMIT
from serving_fuzz.cases import cases, verdict
from serving_fuzz.grpc_calls import calls
from serving_fuzz.requests import Sample
from serving_fuzz.wire import Wire

__all__ = ["LIMIT", "Sample", "Wire", "calls", "cases", "verdict"]
