"""Pictures in, answers out: one implementation for the host and for devices, the same for every target.

``read`` opens and checks files, ``prepare`` makes a model's inputs of a picture, ``place`` knows where the picture lies
in them, ``answers`` makes labels, boxes and masks of the outputs, ``draw`` lays these over the picture. All but
``found`` and ``place`` need NumPy, and some need Pillow: import them where they are used.
"""
