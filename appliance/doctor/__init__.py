"""``appliance doctor``: compares this host with its descriptions. Read-only; each finding names its fix.

Readers (``read_*``) gather facts through :mod:`.host`, and pure judges (``judge_*``) turn facts into findings. A
check (:mod:`.checks`) is one decorated function that combines the two; :mod:`.runner` runs all of them in order.
"""
