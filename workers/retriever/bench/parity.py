"""Tie-aware comparison of two rankings."""

TOLERANCE = 1e-4


def equal_top(ours, theirs, k=10):
    """Whether both first `k` are the same up to the order of equal scores.

    Lists of (id, score) by falling score. Rank by rank the scores agree to TOLERANCE (of the score, at least
    1), and whatever stands clearly above the k-th score is the same set; of those that tie with it any will do.
    """
    if len(ours[:k]) != len(theirs[:k]):
        return False
    if any(abs(a - b) > TOLERANCE * max(1.0, b) for (_, a), (_, b) in zip(ours[:k], theirs[:k])):
        return False
    if not theirs:
        return True
    last = theirs[:k][-1][1]
    edge = last + 2 * TOLERANCE * max(1.0, last)
    above = [{name for name, score in found[:k] if score > edge} for found in (ours, theirs)]
    every = [{name for name, _ in found[:k]} for found in (ours, theirs)]
    return above[0] <= every[1] and above[1] <= every[0]
