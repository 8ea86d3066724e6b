"""`python -m fastpool doctor`: what this installation and a server mean to a pool, with advice.

`here` looks at this Python, `server` at a PostgreSQL, `command` arranges and words what they find.
"""
