"""A private LLM service from bare machines: engines, gateway, proofs.

Nothing but :mod:`appliance.early` is imported here, which needs no dependency: ``appliance.bootstrap`` runs before
any is installed.
"""

from appliance import early as _early

__all__ = ["__version__"]
__version__ = "0.1.0"

del _early
