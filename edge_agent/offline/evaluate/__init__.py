"""Evaluation of embeddings: ranking by TAO's protocol, optionally after re-ranking, open-set error rates and
thresholds from cross-camera pairs, report. `protocol.evaluate` computes all. Rates are fractions, 0..1.
"""
