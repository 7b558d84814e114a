"""Pair supervision found without labels: label pairs, estimate how sure the labels are, keep those that can be trusted.

A pair-label method is a combination of these blocks: a rule that labels pairs (:mod:`.similarity`), a filter
(:mod:`.flip_rate`), a loss (:mod:`.losses`), and a diagnosis of what came out (:mod:`.diagnosis`).
Pair labels are ``(n, n) int8`` with S in {+1 similar, 0 unlabelled, -1 dissimilar}, symmetric, diagonal 0.
"""
