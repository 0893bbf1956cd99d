"""BatchNorm's running statistics, for operators that compute those of a batch themselves."""


def move_statistics(norm, mean, variance):
    """Move the running mean and variance of a BatchNorm2D towards a batch's, both [C], as Paddle does."""
    for running, of_batch in ((norm._mean, mean), (norm._variance, variance)):
        running.set_value(running * norm._momentum + of_batch * (1.0 - norm._momentum))
