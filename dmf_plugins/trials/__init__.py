"""Does it help on my data? Trainings that differ in the loss alone, and a report of what came out.

``engine`` runs cells, ``plan`` keeps what there is to run; ``nnunet`` and ``mmseg`` are one training of
a framework each, ``report`` compares.
"""
