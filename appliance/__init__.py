"""A private LLM service from bare machines: engines, gateway, proofs.

Nothing is imported here: ``appliance.bootstrap`` runs before any dependency is installed.
"""

__version__ = "0.1.0"
