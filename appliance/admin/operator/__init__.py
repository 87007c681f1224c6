"""The operator's page: users, keys, plans, usage, models and alerts in a browser, without scripts.

The admin API serves it. Each action is a form; :mod:`.sessions` holds the log-ins, :mod:`.tables` the pure views,
:mod:`.pages` the routes.
"""
