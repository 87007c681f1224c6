"""``appliance doctor``: is this host what its descriptions say? Read-only; each result names what mends it.

Readers at the edge (:mod:`.host`, ``read_*``) gather facts, pure judges (``judge_*``) turn facts into verdicts, and
:mod:`.catalogue` names every check and puts the two together.
"""
