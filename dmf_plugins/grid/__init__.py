"""The paper's experiment: every rule with every auxiliary loss, over several seeds, in MMSegmentation.

``plan`` says what there is to run, ``cell`` runs one training, ``run`` many at a time, ``report``
writes tables and figures.
"""
