"""Bitstreams that hold a VTA: which ones are known, where to get them, whether a file is what it should be.

``manifest.json`` lists the published ones; ``configurations/`` has the VTA configurations they and the boards' sample
builds have.
"""
