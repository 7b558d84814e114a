"""Pair supervision found without labels: label pairs, estimate how sure the labels are, keep those that can be trusted.

A pair-label method combines a rule that labels pairs (:mod:`.similarity`), a filter (:mod:`.flip_rate`, :mod:`.clusters`) and a loss
(:mod:`.losses`). Pair labels are ``(n, n) int8``: +1 similar, 0 unlabelled, -1 dissimilar; symmetric, diagonal 0.
"""
