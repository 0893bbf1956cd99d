"""Metrics: plain functions of logits and targets."""

TOPK = (1, 5)


def topk_correct(logits, targets, topk=TOPK):
    """How many samples have their class among the k best, for each k of `topk`: a list of int tensors.

    Args:
        logits: [B, K]; where K < k, all K classes count as the k best.
        targets: class indices int [B], or probabilities [B, K], whose largest counts as the class.
    """
    if targets.ndim == 2:
        targets = targets.argmax(axis=-1)
    best = logits.astype("float32").topk(min(max(topk), logits.shape[1]), axis=-1)[1]  # [B, k], best first
    hits = (best == targets.unsqueeze(1)).astype("int64")
    return [hits[:, :k].sum() for k in topk]


def accuracy(logits, targets, topk=TOPK):
    """{"acc1": ..., "acc5": ...} of one batch, in percent, as scalar tensors."""
    scale = 100.0 / logits.shape[0]
    correct = topk_correct(logits, targets, topk)
    return {f"acc{k}": count.astype("float32") * scale for k, count in zip(topk, correct)}
