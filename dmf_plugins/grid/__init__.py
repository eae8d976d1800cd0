"""The paper's experiment: every rule with every auxiliary loss, over several seeds, in MMSegmentation.

``plan`` says what there is to run, ``cell`` runs one training, ``report`` writes tables and figures;
``dmf_plugins.trials.engine`` runs many at a time.
"""
