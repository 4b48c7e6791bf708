"""The live view: a model of what happens (`state`), a picture of it (`render`), and what puts it on a terminal (`live`)
or, where there is none, into plain lines (`lines`).
"""
