"""The results live in the browser: an optional extra, ``batchser[dashboard]`` (Flask, served by waitress).

``app.py`` has the pages, ``filters.py`` what a visitor asks of them, ``uploads.py`` recordings that are scored at once,
``labels.py`` what listeners say. Charts and templates are those of the report (``pages``).
"""
