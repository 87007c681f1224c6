"""``make prove-gpu``: ten minutes on a machine with an NVIDIA card, a report in JSON and a verdict."""
