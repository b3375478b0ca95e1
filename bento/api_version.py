"""The version of the HTTP API: requests, responses and errors, as /openapi.json describes them.

Within a version, fields, headers, codes and paths may be added, so a client ignores what it does not know.
Any change that would break a client makes a new version. A client may name the version that it speaks in a
request header; a service of another version refuses the request before it reads the body. Every response
names the version of the service.
"""

API_VERSION = "1"
VERSION_HEADER = "Tilewise-API-Version"
