"""The version of the HTTP API: requests, answers and errors, as /openapi.json describes them.

Within a version fields, headers, codes and routes may be added, so a reader ignores what it does not know. Anything
that would break a reader makes another version. A client may say in a header which version it speaks; a service of
another refuses the request before it reads it, and says its own in every answer.
"""

API_VERSION = "1"
VERSION_HEADER = "Tilewise-API-Version"
