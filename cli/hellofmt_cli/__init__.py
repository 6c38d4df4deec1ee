"""The command line ``hello`` (also ``hellofmt`` and ``python -m hellofmt``).

One file per command. Commands import ``hellofmt`` and the public names of its rooms, nothing
deeper, so whatever the command line can do a program can do too. This package is internal: the
interface is the commands, their ``--json`` documents and their exit codes.
"""
