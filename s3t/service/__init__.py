"""One run behind HTTP: predictions from several threads, deletions from one. ``pip install 's3t[serve]'``; docs/SERVICE.md.

``bodies`` reads requests, ``tokens`` the secret that allows deletions, ``working`` holds the run and its threads, ``app`` is
the ASGI application and ``running`` what listens. Importing this loads none of them.
"""
