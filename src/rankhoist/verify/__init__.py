"""Verify: is the hoisted model equal to the original? The answer is a certificate.

* `batches` draws ragged batches of requests from example inputs;
* `original` runs the original, in its own dtype and in float64;
* `measure` says how far two results are apart;
* `compare` finds where they differ most;
* `checks` runs all of it and fills in the certificate (`rankhoist.report.certificate`).
"""

from rankhoist.report.certificate import Certificate, Check, Element
from rankhoist.runtime.mixing import mixes_rows
from rankhoist.verify.checks import verify

__all__ = ["Certificate", "Check", "Element", "mixes_rows", "verify"]
