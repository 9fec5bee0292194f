"""Ranges of a network's maps: taken from frames, compared, kept with the weights. They are what 8 bits need.

``record`` is what is kept, ``frames`` which frames are taken, ``statistics`` what is found of them, ``run``
all of it, and ``sensitivity`` what each op alone costs.
"""
