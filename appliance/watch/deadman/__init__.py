"""The dead man's switch: it runs on the VPS and reports that the host at home is silent."""
